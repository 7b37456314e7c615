//! `agentnet serve` and `agentnet connect`: servers that listen elsewhere, and standard streams.

use std::{fs, time::Duration};

use crate::lab::{B, Lab, address, in_lab};
use crate::process::Proc;
use crate::world::{Host, World, wait_for, wait_within};

/// What the whole thing may take that takes a second.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sends back what it got, once that has come to its end; `ADDR` is a port of 127.0.0.1 or a path.
const ECHO: &str = r#"
import os, socket, sys, threading
at = sys.argv[1]
if at.isdigit():
    server = socket.create_server(("127.0.0.1", int(at)))
else:
    server = socket.socket(socket.AF_UNIX)
    server.bind(at)
    server.listen()
def serve(client):
    got = []
    while piece := client.recv(1 << 20):
        got.append(piece)
    client.sendall(b"".join(got))
    client.close()
while True:
    threading.Thread(target=serve, args=[server.accept()[0]], daemon=True).start()
"#;

/// Talks without an end, until the other side breaks off.
const TALK: &str = r#"
import socket
server = socket.create_server(("127.0.0.1", 3000))
while True:
    client, _ = server.accept()
    try:
        while True:
            client.sendall(b"x" * 10000)
    except OSError:
        client.close()
"#;

/// Starts a server on host b, and waits until it listens.
fn server(lab: &Lab, text: &str, at: &str) -> Proc {
    let name = format!("{}.py", at.replace('/', "-"));
    fs::write(World::path(&name), text).unwrap();
    let server = lab.site.b.start(&format!("exec python3 /mnt/{name} {at}"));
    wait_for("the server listens", || {
        lab.site.b.ok("ss -lxtn").contains(at)
    });
    server
}

/// Starts `agentnet serve` on host b, and waits until it says what leads where.
fn serving(host: &Host, line: &str) -> Proc {
    let served = host.start(&format!("exec agentnet serve {line}"));
    wait_for("the port leads to the server", || {
        served.stdout().contains("leads to")
    });
    served
}

#[test]
fn servers_on_loopback_and_sockets_are_reached_by_name() {
    in_lab(|lab| {
        let b = &lab.site.b;
        let _one = server(lab, ECHO, "3000");
        let _two = server(lab, ECHO, "/mnt/echo.sock");
        let early = serving(b, "tcp/8000 --to 127.0.0.1:3000");
        wait_for("it is told that nobody may come", || {
            early
                .stderr()
                .contains("agentnet trust approve NAME --allow tcp/8000")
        });
        lab.trust("tcp/8000 --allow tcp/8001");
        let late = serving(b, "tcp/8001 --to unix:/mnt/echo.sock");

        assert!(late.stdout().contains("open to     a.acme.agent"));
        for port in [8000, 8001] {
            let said = lab
                .site
                .a
                .ok(&format!("echo hello | agentnet connect b:{port}"));
            assert_eq!(said, "hello", "{port}");
        }
        // A port that is taken is told as such.
        let said = b.fails(1, "agentnet serve tcp/8000");
        assert!(said.contains("another program has the port"), "{said}");
        assert_eq!(early.stop().code, 0);
    });
}

#[test]
fn sixty_four_mebibytes_come_back_as_they_went() {
    in_lab(|lab| {
        let _server = server(lab, ECHO, "3000");
        let _served = serving(&lab.site.b, "tcp/8000 --to 3000");
        lab.trust("tcp/8000");
        lab.site.a.ok("head -c 67108864 /dev/urandom >/mnt/there");

        let connected = lab
            .site
            .a
            .start("agentnet connect b:8000 </mnt/there >/mnt/back");
        let ended = connected.finish(Duration::from_secs(100));

        assert_eq!(ended.code, 0, "{ended}");
        lab.site.a.ok("cmp /mnt/there /mnt/back");
    });
}

#[test]
fn what_is_broken_off_does_not_look_complete() {
    in_lab(|lab| {
        let a = &lab.site.a;
        let talker = server(lab, TALK, "3000");
        let served = serving(&lab.site.b, "tcp/8000 --to 3000");
        lab.trust("tcp/8000");
        // The reader decides when it has enough; that is no failure.
        a.ok("agentnet connect b:8000 </dev/null | head -c 1000 | wc -c | grep -q 1000");

        // Input goes on; only the connection ends it.
        let connected =
            a.start("mkfifo /mnt/in; exec agentnet connect b:8000 <>/mnt/in >/mnt/part");
        wait_for("something arrives", || {
            fs::metadata(World::path("part")).is_ok_and(|part| part.len() > 100_000)
        });
        served.kill();
        let ended = connected.finish(PATIENCE);
        assert_eq!(ended.code, 5, "{ended}");
        assert!(ended.stderr.contains("connection broke"), "{ended}");

        // Without its server a port is there, and breaks off.
        let served = serving(&lab.site.b, "tcp/8000 --to 3000");
        drop(talker);
        let said = a.fails(5, "agentnet connect b:8000 </dev/null");
        assert!(said.contains("connection broke"), "{said}");
        wait_for("the operator is told why", || {
            served.stderr().contains("Connection refused")
        });
        let _echo = server(lab, ECHO, "3000");
        wait_within(PATIENCE, "it works again", || {
            let said = a.run("echo again | agentnet connect b:8000");
            (said.stdout == "again\n").then_some(())
        });
    });
}

#[test]
fn connect_says_why_it_cannot() {
    in_lab(|lab| {
        let a = &lab.site.a;
        let said = a.fails(4, "agentnet connect nobody:8000");
        assert!(said.contains("nobody.acme.agent"), "{said}");
        lab.trust("tcp/8000");

        let said = a.fails(3, "agentnet connect b:22");
        let cure = "agentnet trust approve a.acme.agent --allow tcp/22";
        assert!(said.contains(cure), "{said}");
        let said = a.fails(5, "agentnet connect b.acme.agent:8000");
        assert!(said.contains("nobody listens on tcp/8000"), "{said}");
        assert!(said.contains("agentnet serve tcp/8000"), "{said}");
        a.fails(2, "agentnet connect b");
    });
}

#[test]
fn a_server_is_told_who_connected_and_one_peer_leaves_room() {
    in_lab(|lab| {
        let (a, b) = (&lab.site.a, &lab.site.b);
        let _server = server(lab, ECHO, "3000");
        // 64 files for itself, 32 connections, of which one peer has a quarter.
        let served =
            b.start("ulimit -n 128; exec agentnet serve tcp/8000 --to 3000 --proxy-protocol");
        wait_for("it serves", || served.stdout().contains("leads to"));
        lab.trust("tcp/8000");

        let said = a.ok("echo hello | agentnet connect b:8000");
        let (own, peer) = (address(a), address(b));
        let mut words = said.split_whitespace();
        let head = [words.next(), words.next(), words.next(), words.next()];
        assert_eq!(
            head,
            [Some("PROXY"), Some("TCP6"), Some(&*own), Some(&*peer)]
        );
        assert!(said.ends_with(" 8000\r\nhello"), "{said}");

        let count = format!(
            r#"
import socket
held = []
for _ in range(12):
    try:
        held.append(socket.create_connection(("{B}", 8000)))
    except ConnectionResetError:
        pass # It may come as early as that.
kept = len(held)
for at, one in reversed(list(enumerate(held))):
    # What is cut off is among the last, and is so at once.
    one.settimeout(20 if at >= 8 else 0.2)
    try:
        one.recv(1)
    except ConnectionResetError:
        kept -= 1
    except TimeoutError:
        pass
print(kept)
"#
        );
        fs::write(World::path("count.py"), count).unwrap();
        let counted = a
            .start("exec python3 /mnt/count.py")
            .finish(Duration::from_secs(60));
        assert_eq!(counted.stdout.trim(), "8", "{counted}");
        let said = a.ok("echo after | agentnet connect b:8000");
        assert!(said.ends_with("after"), "{said}");
    });
}
