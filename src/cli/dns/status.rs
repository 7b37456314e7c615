use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use std::{fs, io};

use clap::Args;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use crate::cli::context::Context;
use crate::cli::failure::{Exit, Failure};
use crate::cli::output::Show;
use crate::cli::text::list;
use crate::config::{DnsMode, Flags};
use crate::os::dns::{self, HostDns};
use crate::wire::api::local::{AgentStatus, Dns, DnsCheck, DnsLookup, DnsState, Status, Warning};

/// Names looked up at most; one that fails may take the C library ten seconds.
const LOOKUPS: usize = 3;

/// Longest wait for a look-up: two attempts of 5 s (resolv.conf(5)).
const PATIENCE: Duration = Duration::from_secs(12);

/// Longest wait for the node's own resolver, which is on this host.
const CONNECT: Duration = Duration::from_secs(2);

const PORT: u16 = 53;

/// Tell who owns the host's DNS, what the node set, and whether programs find agents
#[derive(Args, Debug)]
#[command(after_help = "\
Looks up the names of the node's own agents as programs do it. Exits with 1 when they are not found \
though the node does not leave the host's DNS alone, and with 5 when no node runs.")]
pub(super) struct StatusArgs {}

impl StatusArgs {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let check = check(context).await?;
        context.out.print(&check)?;
        match &check.node {
            None => {
                Err(Failure::new(Exit::Unreachable, "no node runs").hint("start it: agentnet up"))
            }
            Some(node) if node.state == DnsState::Off => Ok(()),
            Some(_) => match check.lookups.iter().find(|lookup| !lookup.is_ours()) {
                None => Ok(()),
                Some(lookup) => {
                    let what = format!("programs do not find {}", lookup.name);
                    let cure = check
                        .findings
                        .first()
                        .map_or("", |finding| finding.cure.as_str());
                    Err(Failure::new(Exit::Failed, what).hint(cure))
                }
            },
        }
    }
}

/// Finds out how names are looked up on this host.
pub(in crate::cli) async fn check(context: &Context) -> Result<DnsCheck, Failure> {
    let client = context.client()?;
    let (node, agents) = if client.is_up() {
        let node = client.get::<Dns>("/v1/dns", &()).await?;
        let status = client.get::<Status>("/v1/status", &()).await?;
        (Some(node), status.agents)
    } else {
        (None, Vec::new())
    };
    let mut lookups = Vec::new();
    for agent in agents
        .iter()
        .filter(|agent| agent.device.is_some())
        .take(LOOKUPS)
    {
        lookups.push(look_up(agent).await);
    }
    let (owner, why) = match &node {
        // It knows what it changed, which not everybody may read.
        Some(node) if !node.why.is_empty() => (node.owner.clone(), node.why.clone()),
        Some(_) | None => owner(context).await?,
    };
    let nsswitch = fs::read_to_string("/etc/nsswitch.conf");
    let findings = findings(node.as_ref(), &lookups, &nsswitch);
    Ok(DnsCheck {
        node,
        owner,
        why,
        nameservers: dns::nameservers(),
        lookups,
        findings,
    })
}

/// Finds out who owns the host's DNS, and how that is seen.
async fn owner(context: &Context) -> Result<(String, String), Failure> {
    let config = context.node_config(Flags::default())?;
    let found = HostDns::new(DnsMode::Auto, &config.state).find().await;
    Ok(match found {
        Ok(found) => (found.owner.to_string(), found.why.to_owned()),
        Err(error) => ("unknown".to_owned(), error.to_string()),
    })
}

/// Looks an agent up by the C library, and tries the resolver at its address.
async fn look_up(agent: &AgentStatus) -> DnsLookup {
    let expected = agent.address.ip();
    let resolver = TcpStream::connect(SocketAddr::new(IpAddr::V6(expected), PORT));
    let answers = matches!(timeout(CONNECT, resolver).await, Ok(Ok(_)));
    // The final dot keeps search domains out.
    let asked = timeout(PATIENCE, lookup_host((format!("{}.", agent.name), 0))).await;
    let asked = asked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let (found, error) = match asked {
        Ok(found) => {
            let mut found = found.map(|at| at.ip()).collect::<Vec<_>>();
            found.dedup();
            (found, None)
        }
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    DnsLookup {
        name: agent.name.clone(),
        expected,
        found,
        error,
        answers,
    }
}

/// Says what hinders programs to find agents, most urgent first.
fn findings(
    node: Option<&Dns>,
    lookups: &[DnsLookup],
    nsswitch: &io::Result<String>,
) -> Vec<Warning> {
    let Some(node) = node else {
        let text = "no node runs, so nobody answers for agents' names";
        return vec![finding("no_node", text, "start it: agentnet up")];
    };
    let mut all = Vec::new();
    let lost = lookups.iter().find(|lookup| !lookup.is_ours());
    if let Some(deaf) = lookups.iter().find(|lookup| !lookup.answers) {
        let text = format!("nobody answers at {}, port 53", deaf.expected);
        let cure = "agentnet status tells why; a firewall of the host may stand between";
        all.push(finding("no_resolver", text, cure));
    }
    all.extend(of_state(node, lost.is_some()));
    if lost.is_some() && !asks_dns(nsswitch) {
        let text = "the C library does not ask DNS for names (/etc/nsswitch.conf)";
        all.push(finding("nsswitch", text, "add `dns` to its line `hosts:`"));
    }
    if let (Some(lost), true, DnsState::Applied) = (lost, all.is_empty(), node.state) {
        let text = format!("{} is not found, though the host's DNS is set", lost.name);
        let cure = match node.owner.as_str() {
            "resolved" => {
                "see `resolvectl status` and `resolvectl query NAME`; flush other caches (nscd -i hosts)"
            }
            _ => {
                "see whether a cache (nscd, dnsmasq) answers instead of the nameservers of /etc/resolv.conf"
            }
        };
        all.push(finding("not_found", text, cure));
    }
    all
}

/// Says what is wrong with the host's DNS settings by the node's own account.
fn of_state(node: &Dns, is_lost: bool) -> Option<Warning> {
    let why = node.error.as_deref().unwrap_or("the node's log says more");
    let or = |cure: &'static str| node.cure.clone().unwrap_or_else(|| cure.to_owned());
    Some(match node.state {
        DnsState::Waiting => finding(
            "dns_waiting",
            format!("the node may not change the host's DNS: {why}"),
            or("run as root: agentnet dns apply"),
        ),
        DnsState::Contended => finding(
            "dns_contended",
            "another program takes our DNS settings away again and again",
            "find it (it writes /etc/resolv.conf), or name it with --dns; then: agentnet dns apply",
        ),
        DnsState::Failed => finding(
            "dns_failed",
            format!("the host's DNS could not be set: {why}"),
            or("agentnet dns apply tries again"),
        ),
        DnsState::Reverted => finding(
            "dns_reverted",
            "somebody took our DNS settings back",
            "agentnet dns apply sets them again",
        ),
        DnsState::Off if is_lost => finding(
            "dns_off",
            "the node leaves the host's DNS alone (--dns none)",
            "name an agent's address as nameserver in the program's own settings, or start with --dns auto",
        ),
        DnsState::Applied | DnsState::Idle | DnsState::Off => return None,
    })
}

fn finding(code: &str, text: impl Into<String>, cure: impl Into<String>) -> Warning {
    Warning {
        code: code.to_owned(),
        text: text.into(),
        cure: cure.into(),
    }
}

/// Tells whether the C library asks DNS at all; without the file it does (nsswitch.conf(5)).
fn asks_dns(nsswitch: &io::Result<String>) -> bool {
    let Ok(text) = nsswitch else {
        return true;
    };
    let Some(hosts) = text
        .lines()
        .find_map(|line| line.trim_start().strip_prefix("hosts:"))
    else {
        return true;
    };
    hosts
        .split_whitespace()
        .any(|word| matches!(word, "dns" | "resolve"))
}

impl Show for DnsCheck {
    fn show(&self) -> String {
        let mut lines = Vec::new();
        let mut tell = |what: &str, text: String| lines.push(format!("{what:<12}{text}"));
        tell("owner", format!("{}: {}", self.owner, self.why));
        tell("resolv.conf", list(&self.nameservers));
        if let Some(node) = &self.node {
            tell(
                "node",
                format!("{} ({}, --dns {})", node.state, node.owner, node.mode),
            );
            tell("answers at", list(&node.nameservers));
            match node.owner.as_str() {
                "resolved" => tell("routed here", list(&node.domains)),
                _ => tell("completes by", list(&node.search)),
            }
            let others = match node.upstream.as_slice() {
                [] => "refused; nobody sends them here".to_owned(),
                servers => format!("forwarded to {}", list(servers)),
            };
            tell("other names", others);
        }
        for lookup in &self.lookups {
            let found = match (lookup.is_ours(), &lookup.error) {
                (true, _) => format!("found at {}: programs ask the node", lookup.expected),
                (false, Some(error)) => format!("not found: {error}"),
                (false, None) => {
                    format!("found at {}, which is not the agent", list(&lookup.found))
                }
            };
            tell("look-up", format!("{} {found}", lookup.name));
        }
        let mut text = lines.join("\n");
        for finding in &self.findings {
            text.push_str(&format!(
                "\n\nwarning: {}\n  cure: {}",
                finding.text, finding.cure
            ));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(found: &[&str]) -> DnsLookup {
        DnsLookup {
            name: "a.acme.agent".to_owned(),
            expected: "fd11:2233:4455:1::a".parse().unwrap(),
            found: found.iter().map(|ip| ip.parse().unwrap()).collect(),
            error: None,
            answers: true,
        }
    }

    fn codes(state: DnsState, found: &[&str], nsswitch: &str) -> Vec<String> {
        let node = Dns {
            state,
            ..Dns::default()
        };
        let nsswitch = Ok(nsswitch.to_owned());
        let found = findings(Some(&node), &[lookup(found)], &nsswitch);
        assert!(found.iter().all(|finding| !finding.cure.is_empty()));
        found.into_iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn each_cause_is_told_with_its_cure() {
        let (ours, dns) = (["fd11:2233:4455:1::a"], "hosts: files dns\n");
        for (state, found, nsswitch, expected) in [
            (DnsState::Applied, &ours[..], dns, vec![]),
            (DnsState::Off, &ours[..], dns, vec![]),
            (DnsState::Applied, &[], dns, vec!["not_found"]),
            (DnsState::Applied, &["192.0.2.1"], dns, vec!["not_found"]),
            (DnsState::Applied, &[], "hosts: files\n", vec!["nsswitch"]),
            (
                DnsState::Applied,
                &[],
                "hosts: files resolve [!UNAVAIL=return]\n",
                vec!["not_found"],
            ),
            (DnsState::Waiting, &[], dns, vec!["dns_waiting"]),
            (DnsState::Contended, &[], dns, vec!["dns_contended"]),
            (DnsState::Failed, &[], dns, vec!["dns_failed"]),
            (DnsState::Reverted, &[], dns, vec!["dns_reverted"]),
            (DnsState::Off, &[], dns, vec!["dns_off"]),
        ] {
            assert_eq!(
                codes(state, found, nsswitch),
                expected,
                "{state:?} {found:?} {nsswitch}"
            );
        }
        assert_eq!(findings(None, &[], &Ok(String::new()))[0].code, "no_node");
    }
}
