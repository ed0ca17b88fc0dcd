"""A small web service as one finds it in images: answers one request from a
database over HTTP, and says so."""

import argparse
import asyncio
import collections
import concurrent.futures
import csv
import dataclasses
import datetime
import decimal
import email.message
import hashlib
import http.server
import json
import logging
import sqlite3
import ssl
import tempfile
import threading
import unicodedata
import urllib.request
import uuid
import xml.etree.ElementTree
import zipfile

database = sqlite3.connect(":memory:", check_same_thread=False)
database.execute("create table item (name text, price text)")
database.execute("insert into item values ('pear', '1.20'), ('plum', '0.35')")


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        rows = database.execute("select name, price from item order by name")
        total = sum(decimal.Decimal(price) for _, price in rows)
        body = json.dumps({"total": str(total)}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
ssl.create_default_context()
with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/") as answer:
    total = json.load(answer)["total"]
digest = hashlib.sha256(total.encode()).hexdigest()[:8]
print(f"ready: total {total}, {digest}", flush=True)
