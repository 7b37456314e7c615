//! A node in a container that keeps nothing (docs/containers.md).

use crate::{
    lab::{B, Lab, MARKER, address, start_node, start_node_with, wait_attached},
    world::{in_world, wait_for},
};

/// K9: the next container of the name is a new agent that everybody takes for the one of that name, and the one
/// before is gone for its peers.
#[test]
fn the_next_container_has_the_name_of_the_last() {
    in_world(|world| {
        let mut lab = Lab::services(world);
        lab.token("b", "--name b");
        lab.token("pod", "--name web --uses 9 --ephemeral");
        lab.site.b.ok("agentnet join --token-file /mnt/b.token");
        lab.node_b = Some(start_node(&lab.site.b));
        let (a, b) = (&lab.site.a, &lab.site.b);
        wait_attached(b);
        b.ok("agentnet trust auto add --from web --allow tcp/8000");
        let page = lab.serve_page();
        let mut addresses = Vec::new();
        for _ in 0..2 {
            a.ok("rm -rf /var/lib/agentnet");
            let node = start_node_with(a, "--token-file /mnt/pod.token --leave");
            wait_attached(a);
            addresses.push(address(a));
            a.ok(&format!("agentnet trust request {B} --wait 20s"));
            wait_for("it reaches b", || {
                a.run(&format!("curl -sS --max-time 5 http://{B}:8000/"))
                    .stdout
                    .contains(MARKER)
            });
            assert!(b.ok("agentnet peers").contains("web.acme.agent"));

            let ended = node.stop();

            assert_eq!(ended.code, 0, "{ended}");
            wait_for("b has forgotten it", || {
                !b.ok("agentnet peers").contains("web.acme.agent")
            });
        }
        assert_ne!(addresses[0], addresses[1]);
        drop(page);
        let said = a.fails(2, "agentnet up --leave");
        assert!(said.contains("--token-file"), "{said}");
    });
}
