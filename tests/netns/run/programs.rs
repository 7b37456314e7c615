//! Programs as they are work in an agent's network, and reach servers as they are by name.

use std::{fs, time::Duration};

use crate::{
    lab::{B, MARKER},
    process::Proc,
    run::{USER, befriend, open_house},
    world::{Host, World, in_world, wait_for},
};

/// Opens a connection by name, and says the first line of the answer.
const GO: &str = r#"package main

import ("bufio"; "fmt"; "net"; "os")

func main() {
	peer, err := net.Dial("tcp", os.Args[1])
	if err != nil { fmt.Println("error", err); os.Exit(1) }
	fmt.Fprint(peer, "GET / HTTP/1.0\r\n\r\n")
	line, _ := bufio.NewReader(peer).ReadString('\n')
	fmt.Println("go:", line)
}
"#;

/// A user of that name is all that the servers ask for.
const ME: &str = "echo me:x:1000:1000::/mnt/home:/bin/sh >> /etc/passwd";

fn ssh_server(host: &Host) -> Proc {
    host.ok(&format!(
        "{ME} && mkdir -m 700 /mnt/home /mnt/home/.ssh && dropbearkey -t ed25519 -f /mnt/host.key && \
         ssh-keygen -q -t ed25519 -N '' -f /mnt/home/key && \
         cp /mnt/home/key.pub /mnt/home/.ssh/authorized_keys"
    ));
    host.start(&format!(
        "exec {USER} dropbear -F -E -p 2222 -r /mnt/host.key -P /mnt/home/pid"
    ))
}

fn database(host: &Host) -> Proc {
    // Debian keeps the server's programs out of PATH.
    let path = "PATH=$PATH:$(ls -d /usr/lib/postgresql/*/bin | tail -n 1)";
    host.ok(&format!(
        "{path}; {USER} initdb -D /mnt/data -U me --auth=trust --no-sync >/dev/null && \
         echo 'host all me ::/0 trust' >> /mnt/data/pg_hba.conf"
    ));
    host.start(&format!(
        "{path}; exec {USER} postgres -D /mnt/data -c listen_addresses=:: \
         -c unix_socket_directories=/mnt -c fsync=off"
    ))
}

/// Issue 6: curl, ssh, psql, python3, node and a Go binary.
#[test]
fn programs_work_as_they_are() {
    in_world(|world| {
        let (lab, _page) = open_house(world);
        let (a, b) = (&lab.site.a, &lab.site.b);
        b.ok(
            "agentnet trust auto add --from '*' --allow tcp/8000 --allow tcp/2222 --allow tcp/5432",
        );
        let _servers = [ssh_server(b), database(b)];
        a.ok(ME);
        fs::write(World::path("dial.go"), GO).unwrap();
        a.ok("GOCACHE=/mnt/cache GO111MODULE=off go build -o /mnt/dial /mnt/dial.go");
        for port in [2222, 5432] {
            wait_for("the servers listen", || {
                b.ok("ss -Htln").contains(&format!(":{port} "))
            });
        }
        let get = format!("http://{B}:8000/");
        let inside = format!(
            "{} && curl -sS {get}; \
             python3 -c 'import urllib.request as u; print(\"python:\", u.urlopen(\"{get}\").status)'; \
             node -e 'require(\"http\").get(\"{get}\", r => {{ console.log(\"node:\", r.statusCode); r.resume() }})'; \
             /mnt/dial {B}:8000; \
             ssh -p 2222 -i /mnt/home/key -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
               -o BatchMode=yes me@{B} 'echo ssh: $(hostname)'; \
             psql -h {B} -U me -At -c 'select $$psql: $$ || 6 * 7' postgres",
            befriend()
        );
        fs::write(World::path("inside.sh"), inside).unwrap();

        let ran = a
            .start(&format!(
                "exec {USER} agentnet run --token-file /mnt/all.token --name worker -- \
                 sh /mnt/inside.sh"
            ))
            .finish(Duration::from_secs(60));

        for wanted in [
            MARKER,
            "python: 200\n",
            "node: 200\n",
            "go: HTTP/1.0 200",
            "ssh: b\n",
            "psql: 42\n",
        ] {
            assert!(ran.stdout.contains(wanted), "no `{wanted}` in: {ran}");
        }
        assert_eq!(ran.code, 0, "{ran}");
    });
}
