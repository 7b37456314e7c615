//! Settings that are read anew at SIGHUP, by each daemon, while what goes on goes on.

use std::{fs, path::PathBuf};

use nix::sys::signal::Signal;

use crate::{
    lab::{B, Lab, in_lab, start_node_with, wait_attached},
    process::Proc,
    services::OPERATOR,
    world::{Host, World, in_world, wait_for},
};

/// Writes a settings file that every host sees.
fn write(name: &str, text: &str) -> PathBuf {
    let path = World::path(name);
    fs::write(&path, text).unwrap();
    path
}

/// Has a daemon read its settings, and waits until it says `what` once more than before.
fn reload(daemon: &mut Proc, what: &str) {
    let count = |daemon: &Proc| daemon.stderr().matches(what).count();
    let before = count(daemon);
    daemon.signal(Signal::SIGHUP);
    wait_for(what, || count(daemon) > before);
}

/// Replaces text in a file of a daemon's directory.
fn edit(host: &Host, file: &str, from: &str, to: &str) {
    let before = host.ok(&format!("cat {file}"));
    assert!(before.contains(from), "{before}");
    let after = World::path("edited");
    fs::write(&after, before.replace(from, to)).unwrap();
    host.ok(&format!("cat {} > {file}", after.display()));
}

#[test]
fn a_node_takes_up_other_settings_and_keeps_what_it_has() {
    in_lab(|lab| {
        lab.trust("tcp/8000");
        let _page = lab.serve_page();
        lab.node_a = None;
        let file = write("node.toml", "[dns]\nmode = \"resolv-conf\"\n");
        let mut node = start_node_with(&lab.site.a, &format!("--config {}", file.display()));
        let a = &lab.site.a;
        wait_attached(a);
        wait_for("the page comes", || lab.page_arrives());
        let names_it = || a.ok("cat /etc/resolv.conf").contains("nameserver fd");
        assert!(names_it());
        let mode = || a.ok(&format!("agentnet path {B} --json"));
        assert!(mode().contains("\"mode\":\"auto\""), "{}", mode());

        write(
            "node.toml",
            "[dns]\nmode = \"none\"\n[path]\nmode = \"relay\"\n[udp]\nport = 17000\n",
        );
        reload(&mut node, "Settings read anew");
        wait_for("the host's DNS is as it was", || !names_it());
        wait_for("the path is relayed", || {
            mode().contains("\"mode\":\"relay\"")
        });
        // What cannot change is said, and did not.
        let said = node.stderr();
        assert!(
            said.contains("started anew") && said.contains("udp.port"),
            "{said}"
        );
        assert!(!a.ok("ss -lun").contains(":17000 "));

        write("node.toml", "[dns]\nmoed = \"resolv-conf\"\n");
        reload(&mut node, "The settings are not taken up");
        let said = node.stderr();
        assert!(
            said.contains("node.toml:2") && said.contains("moed"),
            "{said}"
        );
        assert!(mode().contains("\"mode\":\"relay\"") && !names_it());

        write("node.toml", "[dns]\nmode = \"resolv-conf\"\n");
        reload(&mut node, "Settings read anew");
        wait_for("the host's DNS is told again", names_it);
        wait_for("the page comes", || lab.page_arrives());
        assert!(node.is_running());
    });
}

/// Issue 6: a fault is looked at closely without a new start, which might end it.
#[test]
fn every_daemon_takes_up_another_level_of_its_log() {
    in_lab(|lab| {
        let (a, public) = (&lab.site.a, &lab.site.public);
        let set = |file: &str, level: &str| {
            public.ok(&format!(
                "sed -i 's/^#*level = .*/level = \"{level}\"/' /var/lib/{file}"
            ));
        };
        lab.node_a = None;
        let file = write("node.toml", "");
        let mut node = start_node_with(a, &format!("--config {}", file.display()));
        wait_attached(a);
        assert!(!node.stderr().contains(" DEBUG "), "{}", node.stderr());

        write("node.toml", "[log]\nlevel = \"debug\"\n");
        reload(&mut node, "Settings read anew");
        lab.trust("any");
        wait_for("details are told", || node.stderr().contains(" DEBUG "));

        // What is told least of all is still told that it is so.
        write("node.toml", "[log]\nlevel = \"error\"\n");
        reload(&mut node, "Settings read anew settings=[\"log.level\"]");
        wait_for("no detail is told any more", || {
            let before = node.stderr().matches("Trust changed").count();
            a.ok("agentnet trust request b");
            node.stderr().matches("Trust changed").count() == before
        });

        let mut registry = lab.registry.take().unwrap();
        let mut networks = 0..;
        let mut is_told = |registry: &Proc| {
            let count = || registry.stderr().matches("Network created").count();
            let (before, number) = (count(), networks.next().unwrap());
            public.ok(&format!("agentnet network create n{number} {OPERATOR}"));
            count() > before
        };
        assert!(is_told(&registry));
        set("registry/registry.toml", "warn");
        reload(&mut registry, "Settings read anew");
        wait_for("it is told no more", || !is_told(&registry));
        set("registry/registry.toml", "info");
        reload(&mut registry, "Settings read anew");
        assert!(is_told(&registry));

        let mut gateway = lab.gateway.take().unwrap();
        assert!(!gateway.stderr().contains(" DEBUG "));
        set("gateway/gateway.toml", "debug");
        reload(&mut gateway, "Settings read anew");
        lab.node_b.take().unwrap().stop();
        wait_for("details are told", || gateway.stderr().contains(" DEBUG "));
    });
}

/// What was typed is not overruled by a file.
#[test]
fn a_level_of_the_command_line_stays() {
    in_lab(|lab| {
        let a = &lab.site.a;
        lab.node_a = None;
        let file = write("node.toml", "");
        let mut node = start_node_with(a, &format!("-v --config {}", file.display()));
        wait_attached(a);

        write("node.toml", "[log]\nlevel = \"error\"\n");
        reload(&mut node, "Settings read anew");
        let before = node.stderr().matches("Trust changed").count();
        lab.trust("any");
        wait_for("details are told", || {
            node.stderr().matches("Trust changed").count() > before
        });
    });
}

#[test]
fn a_registry_and_a_gateway_take_up_other_settings() {
    in_world(|world| {
        let mut lab = Lab::services_with(world, "--wss 198.51.100.1:443", "");
        lab.join();
        lab.start_nodes();
        let public = &lab.site.public;

        // Who is no operator any more may do nothing; who is again may.
        let settings = "/var/lib/registry/registry.toml";
        let mut registry = lab.registry.take().unwrap();
        edit(public, settings, "\noperators = ", "\n#operators = ");
        reload(&mut registry, "Settings read anew");
        public.fails(3, &format!("agentnet network create other {OPERATOR}"));
        edit(public, settings, "\n#operators = ", "\noperators = ");
        reload(&mut registry, "Settings read anew");
        public.ok(&format!("agentnet network create other {OPERATOR}"));

        // Another certificate is shown, and no session ends.
        let mut gateway = lab.gateway.take().unwrap();
        let shown = || {
            let said = public.run("curl -sSkv --max-time 5 https://198.51.100.1:443/ -o /dev/null");
            said.stderr
        };
        assert!(!shown().contains("example.org"), "{}", shown());
        public.ok(
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
             -subj /CN=gateway.example.org -keyout /var/lib/gateway/wss.key -out /var/lib/gateway/wss.pem",
        );
        let settings = "/var/lib/gateway/gateway.toml";
        let more = "certificate = \"/var/lib/gateway/wss.pem\"\nkey = \"/var/lib/gateway/wss.key\"";
        edit(public, settings, "[wss]", &format!("[wss]\n{more}"));
        reload(&mut gateway, "Settings read anew");
        wait_for("the other certificate is shown", || {
            shown().contains("gateway.example.org")
        });

        // A file that is not there changes nothing, and is told.
        edit(
            public,
            settings,
            "[peering]",
            "[peering]\nfiles = [\"absent.json\"]",
        );
        reload(&mut gateway, "Peerings stay as they were");
        assert!(gateway.stderr().contains("absent.json"));
        lab.trust("any");
        wait_for("b answers", || {
            lab.site.a.run(&format!("ping -6 -c 1 -W 1 {B}")).code == 0
        });
    });
}
