//! Every resolver that programs bring along finds agents: by name and address, and no more than there is.

use std::fs;

use crate::{
    host_dns::{lease, nameserver},
    lab::{B, address, in_lab},
    world::{Host, World},
};

/// Prints the addresses of a name, or the name of an address, as the C library of the compiler finds them.
const C: &str = r#"
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
int main(int n, char **words) {
  struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
  int error = getaddrinfo(words[1], 0, &hints, &found);
  if (error) { printf("error %s\n", gai_strerror(error)); return 1; }
  for (; found; found = found->ai_next) {
    char text[1024];
    int wants_name = n > 2 ? NI_NAMEREQD : NI_NUMERICHOST;
    error = getnameinfo(found->ai_addr, found->ai_addrlen, text, sizeof text, 0, 0, wants_name);
    printf("%s\n", error ? gai_strerror(error) : text);
  }
}
"#;

const GO: &str = r#"package main

import ("fmt"; "net"; "os")

func main() {
	look := net.LookupHost
	if len(os.Args) > 2 { look = net.LookupAddr }
	found, err := look(os.Args[1])
	if err != nil { fmt.Println("error", err); os.Exit(1) }
	for _, one := range found { fmt.Println(one) }
}
"#;

const PYTHON: &str = r#"
import socket, sys
if len(sys.argv) > 2:
    print(socket.gethostbyaddr(sys.argv[1])[0])
else:
    for found in socket.getaddrinfo(sys.argv[1], 0, type=socket.SOCK_STREAM):
        print(found[4][0])
"#;

/// dns.lookup goes by the C library, dns.resolve and dns.reverse by c-ares.
const NODE: &str = r#"
const dns = require("dns").promises;
const [how, name, reverse] = process.argv.slice(2);
const by = async (kind) => { try { return await dns.resolve(name, kind); } catch (e) { if (e.code === "ENODATA") return []; throw e; } };
const look = async () => reverse ? dns.reverse(name)
  : how === "lookup" ? (await dns.lookup(name, {all: true})).map((found) => found.address)
  : [...await by("AAAA"), ...await by("A")];
look().then((found) => found.forEach((one) => console.log(one)), (e) => { console.log("error", e.code); process.exit(1); });
"#;

/// A way to look names up: what it is called, how it looks up a name, how an address.
struct Client {
    called: &'static str,
    name: &'static str,
    address: &'static str,
}

const CLIENTS: [Client; 8] = [
    Client {
        called: "glibc",
        name: "getent ahosts NAME | cut -d' ' -f1",
        address: "getent hosts NAME | tr -s ' ' '\\n'",
    },
    Client {
        called: "musl",
        name: "/mnt/musl NAME",
        address: "/mnt/musl NAME reverse",
    },
    Client {
        called: "Go's own",
        name: "GODEBUG=netdns=go /mnt/go NAME",
        address: "GODEBUG=netdns=go /mnt/go NAME reverse",
    },
    Client {
        called: "Go by the C library",
        name: "GODEBUG=netdns=cgo /mnt/go NAME",
        address: "GODEBUG=netdns=cgo /mnt/go NAME reverse",
    },
    Client {
        called: "Node, dns.lookup",
        name: "node /mnt/look.js lookup NAME",
        address: "node /mnt/look.js lookup NAME reverse",
    },
    Client {
        called: "Node, dns.resolve",
        name: "node /mnt/look.js resolve NAME",
        address: "node /mnt/look.js resolve NAME reverse",
    },
    Client {
        called: "Python",
        name: "python3 /mnt/look.py NAME",
        address: "python3 /mnt/look.py NAME reverse",
    },
    Client {
        called: "dig",
        name: "dig +short NAME AAAA; dig +short NAME A",
        address: "dig +short -x NAME",
    },
];

fn build(host: &Host) {
    for (file, text) in [
        ("look.c", C),
        ("look.go", GO),
        ("look.py", PYTHON),
        ("look.js", NODE),
    ] {
        fs::write(World::path(file), text).unwrap();
    }
    host.ok("musl-gcc -static -o /mnt/musl /mnt/look.c");
    host.ok("GOCACHE=/mnt/cache GO111MODULE=off go build -o /mnt/go /mnt/look.go");
}

/// Returns the lines that a client says; what it finds nothing for gives none.
fn lines(host: &Host, line: &str, name: &str) -> Vec<String> {
    let said = host.run(&line.replace("NAME", name)).stdout;
    let found = said.lines().filter(|line| !line.starts_with("error"));
    let mut found = found
        .map(|line| line.trim_end_matches('.').to_owned())
        .collect::<Vec<_>>();
    found.sort();
    found.dedup();
    found
}

/// B-005: glibc, musl, Go, Node, Python and dig agree on an agent's name, one that is not there, an address, and a name
/// of the world outside.
#[test]
fn every_client_finds_agents_and_everything_else() {
    in_lab(|lab| {
        lab.trust("tcp/8000");
        let (a, there) = (&lab.site.a, address(&lab.site.b));
        let _server = nameserver(a, "192.0.2.53", "203.0.113.1");
        lease(a, "192.0.2.53");
        crate::world::wait_for("foreign names are found", || {
            a.run("getent ahosts www.example.com").code == 0
        });
        build(a);

        for client in CLIENTS {
            let called = client.called;
            let look = |name: &str| lines(a, client.name, name);
            // AAAA and nothing else: there is no A record, and asking for one is no error.
            assert_eq!(look(B), [there.as_str()], "{called}");
            assert_eq!(look("nobody.acme.agent"), [""; 0], "{called}");
            assert_eq!(look("www.example.com"), ["203.0.113.1"], "{called}");
            let names = lines(a, client.address, &there);
            assert!(names.iter().any(|name| name == B), "{called}: {names:?}");
        }
        assert!(a.ok(&format!("dig {B} A")).contains("status: NOERROR"));
        assert!(
            a.ok("dig nobody.acme.agent AAAA")
                .contains("status: NXDOMAIN")
        );
    });
}
