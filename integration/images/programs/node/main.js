// A small web service: answers one request, compressed, and says so.
"use strict";
const crypto = require("node:crypto");
const http = require("node:http");
const zlib = require("node:zlib");

const items = Array.from({ length: 1000 }, (_, n) => ({ name: `item ${n}`, price: n / 4 }));
const socket = "/tmp/app.sock";

const server = http.createServer((request, response) => {
	response.setHeader("Content-Encoding", "gzip");
	response.end(zlib.gzipSync(JSON.stringify(items)));
});

server.listen(socket, () => {
	http.get({ socketPath: socket, path: "/" }, async (response) => {
		const chunks = [];
		for await (const chunk of response) chunks.push(chunk);
		const body = zlib.gunzipSync(Buffer.concat(chunks));
		const total = JSON.parse(body).reduce((sum, item) => sum + item.price, 0);
		const digest = crypto.createHash("sha256").update(body).digest("hex").slice(0, 8);
		console.log(`ready: total ${total}, ${digest}`);
		server.close();
		server.closeAllConnections?.();
	});
});
