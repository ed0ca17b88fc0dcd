#!/bin/sh
# Starts the server, and has it answer one request.
set -eu
nginx -c /app/nginx.conf
answer=$(perl -MIO::Socket::UNIX -e '
	my $server = IO::Socket::UNIX->new("/run/nginx.sock") or die $!;
	print $server "GET / HTTP/1.0\r\n\r\n";
	print scalar <$server>' | tr -d '\r')
echo "ready: $answer"
nginx -c /app/nginx.conf -s stop
