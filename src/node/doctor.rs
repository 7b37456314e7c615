//! Finds out what is wrong on this host: `agentnet doctor`. It looks at the host itself and judges what others
//! found out already: the node, `agentnet netcheck`, `agentnet dns status`.

mod host;
mod judge;

use crate::config::NodeConfig;
use crate::engine::membership::Membership;
use crate::id::OverlayIp;
use crate::node::store;
use crate::os::clock;
use crate::wire::api::local::{Check, CheckState, Diagnosis, DnsCheck, Netcheck, Status};

/// What others found out.
#[derive(Debug)]
pub struct Findings {
    /// None where no node answers.
    pub status: Option<Status>,
    /// The same in words; None where one answers.
    pub no_node: Option<String>,
    /// None where the network was not to be looked at.
    pub network: Option<Netcheck>,
    /// None where names could not be looked at.
    pub dns: Option<DnsCheck>,
}

/// Examines the host; takes a few seconds.
pub async fn examine(config: &NodeConfig, found: &Findings) -> Diagnosis {
    let status = found.status.as_ref();
    let agents = match status {
        Some(status) => status.agents.iter().map(|agent| agent.address).collect(),
        None => stored(config),
    };
    let mut checks = judge::node(status, found.no_node.as_deref());
    checks.extend(host::daemons(status));
    checks.push(host::kernel());
    checks.push(host::user_namespaces());
    checks.push(host::tun(status));
    checks.push(host::disk(config));
    checks.extend(host::state(config, status));
    checks.extend(host::port(config, status));
    checks.push(host::addresses(&agents, status).await);
    checks.push(host::routes().await);
    checks.push(host::firewall().await);
    checks.extend(judge::network(found.network.as_ref()));
    checks.extend(judge::dns(found.dns.as_ref()));
    Diagnosis {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        now: clock::unix(),
        daemon: status.is_some(),
        checks,
    }
}

/// Returns the addresses of agents that joined, as the state on disk has them.
fn stored(config: &NodeConfig) -> Vec<OverlayIp> {
    let state = store::read(&config.state).unwrap_or_default();
    let addresses = state.memberships.iter().filter_map(Membership::address);
    addresses.collect()
}

fn well(check: &str, text: impl Into<String>) -> Check {
    Check {
        check: check.to_owned(),
        state: CheckState::Well,
        text: text.into(),
        code: None,
        cure: None,
    }
}

fn unknown(check: &str, text: impl Into<String>) -> Check {
    Check {
        state: CheckState::Unknown,
        ..well(check, text)
    }
}

/// What was found about `check`, by its stable name, with its cure.
fn found(
    check: &str,
    state: CheckState,
    code: &str,
    text: impl Into<String>,
    cure: impl Into<String>,
) -> Check {
    Check {
        state,
        code: Some(code.to_owned()),
        cure: Some(cure.into()),
        ..well(check, text)
    }
}

fn broken(check: &str, code: &str, text: impl Into<String>, cure: impl Into<String>) -> Check {
    found(check, CheckState::Broken, code, text, cure)
}

fn odd(check: &str, code: &str, text: impl Into<String>, cure: impl Into<String>) -> Check {
    found(check, CheckState::Odd, code, text, cure)
}
