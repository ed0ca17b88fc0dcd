#!/bin/sh
# Makes a database cluster, starts its server, and answers one query.
set -eu
PATH=$PATH:$(echo /usr/lib/postgresql/*/bin)
data=/tmp/data

server() { setpriv --reuid=postgres --regid=postgres --clear-groups "$@"; }

install -d -o postgres -m 700 "$data"
server initdb --auth=trust "$data" >/dev/null
server pg_ctl start -D "$data" -w -s -l /tmp/log -o "-c listen_addresses= -c unix_socket_directories=/tmp"
total=$(psql -h /tmp -U postgres -At <<'SQL'
\set QUIET on
create table item (name text primary key, price numeric);
insert into item select 'item ' || n, n * 0.25 from generate_series(1, 1000) n;
select sum(price) from item where name like '%7%';
SQL
)
echo "ready: total $total"
server pg_ctl stop -D "$data" -s -m fast
