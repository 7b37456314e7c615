//! The registry on the public host, set up and used by the commands an operator and owner type.

use std::fs;

use serde_json::Value;

use crate::{
    process::Proc,
    site::{PUB, Site},
    world::{Host, World, in_world, wait_for},
};

/// Where the registry listens.
pub(crate) const REGISTRY: &str = "198.51.100.1:8443";
/// What lets commands act as the operator.
pub(crate) const OPERATOR: &str = "--operator-token-file /var/lib/registry/operator.token";

/// Makes a domain and starts its registry on the public host.
pub(crate) fn new_registry(public: &Host) -> Proc {
    public.ok(&format!(
        "agentnet registry init --dir /var/lib/registry --listen {REGISTRY}"
    ));
    start_registry(public)
}

/// Starts the registry that was made before.
pub(crate) fn start_registry(public: &Host) -> Proc {
    let serve = "exec agentnet registry serve --config /var/lib/registry/registry.toml";
    let registry = public.start(serve);
    wait_for("the registry is ready", || is_ready(public));
    registry
}

fn is_ready(host: &Host) -> bool {
    host.run(&format!("curl -sfk --max-time 2 https://{REGISTRY}/readyz"))
        .code
        == 0
}

fn json(host: &Host, command: &str) -> Value {
    serde_json::from_str(&host.ok(command)).unwrap()
}

#[test]
fn the_registry_is_reached_from_behind_a_router() {
    in_world(|world| {
        let site = Site::new(world);
        let _registry = new_registry(&site.public);

        assert!(is_ready(&site.a) && is_ready(&site.b));
    });
}

#[test]
fn what_the_registry_knows_outlives_a_crash() {
    in_world(|world| {
        let site = Site::new(world);
        let public = &site.public;
        let registry = new_registry(public);
        public.ok(&format!("agentnet network create acme {OPERATOR}"));
        public.ok("agentnet token create acme --name 'worker-*' --uses 3 --out /mnt/t");
        let before = json(public, "agentnet token list acme --json");

        registry.kill();
        let _registry = start_registry(public);

        let after = json(public, "agentnet token list acme --json");
        assert_eq!(after["tokens"], before["tokens"]);
        assert_eq!(after["tokens"].as_array().map(Vec::len), Some(1));
    });
}

#[test]
fn secrets_are_private_and_printed_nowhere() {
    in_world(|world| {
        let site = Site::new(world);
        let public = &site.public;
        let registry = new_registry(public);
        public.ok(&format!("agentnet network create acme {OPERATOR}"));
        let said = public.ok("agentnet token create acme --name a --out /mnt/t");

        let token = fs::read_to_string(World::path("t")).unwrap();
        assert!(!said.contains(token.trim()), "{said}");
        let open = public.ok(
            "find /mnt/t /var/lib/registry /var/lib/agentnet -type f -perm /077 \
             -not -name registry.toml",
        );
        assert_eq!(open, "", "others may read these");
        let ended = registry.stop();
        assert_eq!(ended.code, 0, "{ended}");
        let secret = public.ok("cat /var/lib/registry/operator.token");
        assert!(!ended.to_string().contains(&secret));
    });
}

#[test]
fn an_owner_without_a_registry_is_told_so_and_has_no_network() {
    in_world(|world| {
        let site = Site::new(world);
        let public = &site.public;
        drop(new_registry(public));

        let said = public.fails(5, &format!("agentnet network create acme {OPERATOR}"));
        assert!(said.contains(REGISTRY), "{said}");

        let _registry = start_registry(public);
        public.ok(&format!("agentnet network create acme {OPERATOR}"));
        let networks = json(public, "agentnet network list --json");
        assert_eq!(networks["networks"].as_array().map(Vec::len), Some(1));
    });
}

#[test]
fn another_domains_operator_is_denied() {
    in_world(|world| {
        let site = Site::new(world);
        let public = &site.public;
        let _registry = new_registry(public);
        // Same place, other keys: the pin in the token is not the registry's.
        public.ok(&format!(
            "agentnet registry init --dir /var/lib/other --listen {REGISTRY}"
        ));
        let other = "--operator-token-file /var/lib/other/operator.token";

        let output = public.run(&format!("agentnet network create acme {other}"));

        assert!([3, 5].contains(&output.code), "{output}");
        assert_eq!(
            json(public, "agentnet network list --json")["networks"],
            Value::Array(vec![])
        );
    });
}

#[test]
fn a_registry_whose_port_is_in_use_says_so() {
    in_world(|world| {
        let site = Site::new(world);
        let _registry = new_registry(&site.public);
        site.public.ok(&format!(
            "agentnet registry init --dir /var/lib/other --listen {REGISTRY}"
        ));

        let serve = "agentnet registry serve --config /var/lib/other/registry.toml";
        let said = site.public.fails(1, serve);

        assert!(
            said.contains(REGISTRY) && said.to_lowercase().contains("in use"),
            "{said}"
        );
        assert!(is_ready(&site.a));
    });
}

#[test]
fn bytes_that_are_no_request_close_one_connection_only() {
    in_world(|world| {
        let site = Site::new(world);
        let mut registry = new_registry(&site.public);

        for (what, stream) in [
            ("noise", "head -c 200000 /dev/urandom"),
            ("plain http", "printf 'GET / HTTP/1.1\\r\\n\\r\\n'"),
            ("half a hello", "printf '\\026\\003\\001\\002\\000\\001'"),
        ] {
            let sent = site.a.run(&format!(
                "{stream} | timeout 5 nc -N -w 2 {PUB} 8443 | wc -c"
            ));
            assert!(sent.code == 0, "{what}: {sent}");
        }

        assert!(registry.is_running() && is_ready(&site.a));
    });
}
