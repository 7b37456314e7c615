use std::{collections::BTreeMap, time::Duration};

use crate::engine::view::PeerView;
use crate::id::{OverlayIp, UnixTime};
use crate::node::{
    carriers,
    driver::{Core, now},
};
use crate::os::clock;
use crate::wire::api::local::{AgentStatus, Dns, DnsState, LinkState, Warning};

/// How long a peer is asked in vain before that is told: a restart of its node is over by then.
pub(in crate::node) const SILENCE: Duration = Duration::from_secs(5);

/// What needs a person, most urgent first.
pub(super) fn all(core: &Core, agents: &[AgentStatus]) -> Vec<Warning> {
    let mut all = Vec::new();
    if let Some(why) = core.unsaved() {
        let text = format!("the state cannot be written: {why}");
        let cure = "free space or mend the disk; changes since then are lost when agentnet stops";
        all.push(warning("state_unsaved", text, cure));
    }
    if agents.is_empty() {
        let cure = "join a network: agentnet join --token-file FILE";
        all.push(warning("no_agent", "no agent joined yet".to_owned(), cure));
    }
    let time = clock::unix();
    for agent in agents {
        all.extend(membership_warning(agent, time));
        all.extend(device_warning(agent));
        all.extend(registry_warning(agent));
        all.extend(withheld_warning(core, agent));
        all.extend(gateway_warning(agent));
        all.extend(carrier_warning(core, agent));
        all.extend(silence_warning(core, agent));
    }
    all
}

fn warning(code: &str, text: String, cure: &str) -> Warning {
    Warning {
        code: code.to_owned(),
        text,
        cure: cure.to_owned(),
    }
}

fn membership_warning(agent: &AgentStatus, time: UnixTime) -> Option<Warning> {
    let (name, membership) = (&agent.name, &agent.membership);
    if time >= membership.expires {
        let cure = "join again with a new token from the network's owner";
        let text = format!("{name} is no member any more");
        return Some(warning("membership_lapsed", text, cure));
    }
    membership.lapses_soon(time).then(|| {
        let text = format!("the membership of {name} ends {}", membership.expires);
        let cure = "see that the registry is reachable, or ask the owner for a new grant";
        warning("membership_lapses", text, cure)
    })
}

fn device_warning(agent: &AgentStatus) -> Option<Warning> {
    // One that is for programs has none while none runs.
    let is_missing = agent.device.is_none() && !agent.apart;
    is_missing.then(|| {
        let text = format!("{} has no network device", agent.name);
        let cure = "the daemon's log says why; one that was taken away is tried again every 5 s, else \
                    restart agentnet";
        warning("no_device", text, cure)
    })
}

/// What hinders programs to find agents by name; `deaf` are the agents at whose addresses no names are answered.
pub(super) fn names(
    agents: &[AgentStatus],
    deaf: &BTreeMap<OverlayIp, String>,
    dns: &Dns,
) -> Vec<Warning> {
    let deaf = agents.iter().filter_map(|agent| deaf_warning(agent, deaf));
    deaf.chain(dns_warning(dns)).collect()
}

fn deaf_warning(agent: &AgentStatus, deaf: &BTreeMap<OverlayIp, String>) -> Option<Warning> {
    let why = deaf.get(&agent.address)?;
    let text = format!(
        "names are not answered at the address of {}: {why}",
        agent.name
    );
    let cure = "other agents of this host answer for it; stop what uses port 53 there and restart \
                agentnet";
    Some(warning("no_resolver", text, cure))
}

/// Says that the host's programs do not find agents by name.
fn dns_warning(dns: &Dns) -> Option<Warning> {
    let (code, text) = match dns.state {
        DnsState::Contended => (
            "dns_contended",
            "another program takes our DNS settings away again and again".to_owned(),
        ),
        DnsState::Failed => {
            let why = dns.error.as_deref().unwrap_or("unknown");
            (
                "dns_failed",
                format!("the host's programs are not told of our names: {why}"),
            )
        }
        DnsState::Waiting => (
            "dns_waiting",
            "the host's DNS settings wait for somebody who may change them".to_owned(),
        ),
        DnsState::Applied | DnsState::Idle | DnsState::Off | DnsState::Reverted => return None,
    };
    let cure = dns
        .cure
        .as_deref()
        .unwrap_or("agentnet dns status tells more; agentnet dns apply tries again");
    Some(warning(code, text, cure))
}

fn registry_warning(agent: &AgentStatus) -> Option<Warning> {
    if matches!(agent.registry.state, LinkState::Connected) {
        return None;
    }
    let why = agent.registry.error.as_deref().unwrap_or("connecting");
    let text = format!("{}: {why}", agent.name);
    let cure = "existing trust works meanwhile; check the registry and the way to it";
    Some(warning("registry_lost", text, cure))
}

fn withheld_warning(core: &Core, agent: &AgentStatus) -> Option<Warning> {
    let withheld = core.engine.withheld(agent.address, now());
    let peer = withheld.first()?;
    let peer = peer.as_ref().map(|name| format!(" {name}"));
    let text = format!(
        "{}: peer{} knew of a revocation that the registry did not tell",
        agent.name,
        peer.unwrap_or_default()
    );
    let cure = "it holds here; ask the registry's operator why it is kept back or was lost";
    Some(warning("revocation_withheld", text, cure))
}

/// Says that data does not pass, which a registry and a gateway that answer do not show.
fn silence_warning(core: &Core, agent: &AgentStatus) -> Option<Warning> {
    let time = now();
    let is_silent = |peer: &PeerView| peer.asked.is_some_and(|at| time.now >= at + SILENCE);
    let peers = core.engine.peers(agent.address, time);
    let mut silent = peers.iter().filter(|peer| is_silent(peer));
    let first = &silent.next()?.name;
    let others = match silent.count() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let text = format!(
        "{}: nothing comes from {first}{others}, though packets go there",
        agent.name
    );
    let cure = "see whether its node runs; agentnet path NAME shows which ways were tried";
    Some(warning("peer_silent", text, cure))
}

fn gateway_warning(agent: &AgentStatus) -> Option<Warning> {
    let name = &agent.name;
    let Some(gateway) = &agent.gateway else {
        let cure = "run a gateway in this domain: agentnet gateway init, then serve";
        let text = format!("{name} knows no gateway");
        return Some(warning("no_gateway", text, cure));
    };
    if matches!(gateway.state, LinkState::Connected) {
        return None;
    }
    if matches!(gateway.state, LinkState::Displaced) {
        let text = format!("{name} runs on another host, which attached later; it is at rest here");
        let cure = "if it moved, stop agentnet here; to have it back, restart agentnet here; if you \
                    know of no other host, its keys were stolen: have it revoked";
        return Some(warning("displaced", text, cure));
    }
    let at = &gateway.endpoint;
    let text = format!("{name} is not attached to the gateway at {at}");
    let cure = "check that the gateway runs and that UDP, or TCP port 443, to it is let through";
    Some(warning("gateway_lost", text, cure))
}

/// Says why a gateway that is not reached by UDP is not reached by WebSocket either.
fn carrier_warning(core: &Core, agent: &AgentStatus) -> Option<Warning> {
    let gateway = agent.gateway.as_ref()?;
    if matches!(gateway.state, LinkState::Connected) {
        return None;
    }
    match core.carriers()?.state(&gateway.id)? {
        carriers::State::Failed { code, text, cure } => {
            let text = format!("{}: no WebSocket to the gateway: {text}", agent.name);
            Some(warning(code, text, cure))
        }
        carriers::State::Connected { .. } | carriers::State::Connecting | carriers::State::Idle => {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;
    use crate::id::IdentityKey;

    const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

    /// Returns an agent with which all is well.
    fn agent() -> AgentStatus {
        let id = IdentityKey::from_seed([1; 32]).did();
        let gateway = json!({
            "id": id, "endpoint": "192.0.2.1:16201", "state": "connected", "since": NOW,
            "observed": null, "rtt_ms": null,
        });
        let status = json!({
            "name": "a.acme.agent", "id": id, "address": "fd00:0:0:1::1", "network": "acme", "network_id": id,
            "membership": {
                "since": NOW, "expires": NOW + Duration::from_secs(90 * 86_400), "renews": true,
            },
            "registry": { "url": "https://r", "state": "connected", "since": NOW },
            "gateway": gateway, "device": "agn0", "peers": 0, "pending": 0,
        });
        from_value(status).unwrap()
    }

    /// Returns the codes of all that is told of one agent.
    fn codes(agent: &AgentStatus, days: u64) -> Vec<String> {
        let time = NOW + Duration::from_secs(days * 86_400);
        let found = [
            membership_warning(agent, time),
            device_warning(agent),
            registry_warning(agent),
            gateway_warning(agent),
        ];
        let found = found.into_iter().flatten();
        found.map(|warning| warning.code).collect()
    }

    #[test]
    fn each_thing_that_is_wrong_with_an_agent_is_told_with_its_cure() {
        let of_gateway = |state| {
            move |agent: &mut AgentStatus| {
                agent.gateway.as_mut().unwrap().state = state;
            }
        };
        type Change = Box<dyn Fn(&mut AgentStatus)>;
        let changes: [(Change, &[&str]); 7] = [
            (Box::new(|_| {}), &[]),
            (Box::new(|agent| agent.device = None), &["no_device"]),
            (
                Box::new(|agent| {
                    agent.device = None;
                    agent.apart = true;
                }),
                &[],
            ),
            (
                Box::new(|agent| agent.registry.state = LinkState::Unreachable),
                &["registry_lost"],
            ),
            (Box::new(|agent| agent.gateway = None), &["no_gateway"]),
            (
                Box::new(of_gateway(LinkState::Unreachable)),
                &["gateway_lost"],
            ),
            (Box::new(of_gateway(LinkState::Displaced)), &["displaced"]),
        ];

        for (change, expected) in changes {
            let mut agent = agent();
            change(&mut agent);
            assert_eq!(codes(&agent, 1), expected);
        }
    }

    #[test]
    fn a_membership_that_ends_is_told_before_and_after() {
        for (days, expected) in [
            (60, None),
            (70, Some("membership_lapses")),
            (90, Some("membership_lapsed")),
        ] {
            let found = codes(&agent(), days);
            assert_eq!(found.first().map(String::as_str), expected, "{days}");
        }
    }
}
