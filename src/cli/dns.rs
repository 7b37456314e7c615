pub(super) mod status;

use clap::{Args, Subcommand};
use serde::Serialize;

use crate::cli::context::Context;
use crate::cli::dns::status::StatusArgs;
use crate::cli::failure::{Exit, Failure};
use crate::cli::output::Show;
use crate::config::{DnsMode, Flags};
use crate::id::Label;
use crate::os::dns::{DnsError, HostDns, Reverted, Wanted};
use crate::wire::api::local::{Dns, DnsState};

/// Show and set how the host's programs find agents by name
#[derive(Args, Debug)]
pub(super) struct DnsArgs {
    #[command(subcommand)]
    command: DnsCommand,
}

#[derive(Debug, Subcommand)]
enum DnsCommand {
    Apply(ApplyArgs),
    Revert(RevertArgs),
    Status(StatusArgs),
}

impl DnsArgs {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        match self.command {
            DnsCommand::Apply(args) => args.run(context).await,
            DnsCommand::Revert(args) => args.run(context).await,
            DnsCommand::Status(args) => args.run(context).await,
        }
    }
}

/// Have the host's programs ask the running node for agents' names
#[derive(Args, Debug)]
#[command(after_help = "\
The node does this by itself where it may. Where it runs as a user that may not, root does it by this \
command, after each start; a change of agents or of the host's DNS needs it again (docs/dns.md).")]
pub(super) struct ApplyArgs {}

impl ApplyArgs {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        let mut dns = client.post::<Dns>("/v1/dns/apply", &()).await?;
        if dns.state == DnsState::Waiting {
            let wanted = wanted(&dns).map_err(|what| Failure::new(Exit::Failed, what))?;
            let mut host = HostDns::new(mode(&dns), &state(context)?);
            let found = host.find().await?;
            host.apply(found.owner, &wanted).await?;
            // It looks, and learns whom else to ask.
            dns = client.post::<Dns>("/v1/dns/apply", &()).await?;
        }
        match dns.state {
            DnsState::Contended | DnsState::Failed | DnsState::Waiting => Err(failed(&dns)),
            DnsState::Applied | DnsState::Idle | DnsState::Off | DnsState::Reverted => {
                context.out.done(&dns)
            }
        }
    }
}

fn failed(dns: &Dns) -> Failure {
    let why = dns.error.as_deref().unwrap_or("the node's log says why");
    let failure = Failure::new(Exit::Failed, format!("the host's DNS is not set: {why}"));
    match &dns.cure {
        Some(cure) => failure.hint(cure),
        None => failure,
    }
}

/// Returns what the node wants of the host, which root does not take on trust: nothing but addresses of its
/// resolvers and names of domains comes into files of the host.
fn wanted(dns: &Dns) -> Result<Wanted, String> {
    for domain in dns.search.iter().chain(&dns.domains) {
        let is_domain = domain.len() < 254 && domain.split('.').all(|l| l.parse::<Label>().is_ok());
        if !is_domain {
            return Err(format!("the node names a strange domain: {domain:?}"));
        }
    }
    Ok(Wanted {
        nameservers: dns.nameservers.clone(),
        on_loopback: dns.on_loopback,
        search: dns.search.clone(),
        domains: dns.domains.clone(),
        device: dns.device.clone(),
    })
}

/// Returns the node's mode; one that a newer node knows is for us to find out.
fn mode(dns: &Dns) -> DnsMode {
    let modes = [
        DnsMode::Auto,
        DnsMode::NetworkManager,
        DnsMode::None,
        DnsMode::ResolvConf,
        DnsMode::Resolvconf,
        DnsMode::Resolved,
    ];
    let named = modes.into_iter().find(|mode| mode.as_str() == dns.mode);
    named.unwrap_or_default()
}

fn state(context: &Context) -> Result<std::path::PathBuf, Failure> {
    Ok(context.node_config(Flags::default())?.state)
}

impl Show for Dns {
    fn show(&self) -> String {
        match self.state {
            DnsState::Applied => format!("programs find agents by name ({})", self.owner),
            DnsState::Idle => "no agent has an address yet, so there is nothing to set".to_owned(),
            DnsState::Off => "the node leaves the host's DNS alone (--dns none)".to_owned(),
            DnsState::Contended | DnsState::Failed | DnsState::Reverted | DnsState::Waiting => {
                format!("programs do not find agents by name: {}", self.state)
            }
        }
    }
}

/// Put the host's DNS settings back as they were, also after the node was killed
#[derive(Args, Debug)]
#[command(after_help = "\
A running node leaves them alone then, until `agentnet dns apply` or its next start. What somebody else \
changed after the node stays as it is.")]
pub(super) struct RevertArgs {}

/// What `agentnet dns revert` did.
#[derive(Debug, Serialize)]
struct Done {
    /// `restored`, `nothing` or `left_theirs`.
    reverted: &'static str,
}

impl RevertArgs {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        let (device, was_applied) = if client.is_up() {
            let before = client.get::<Dns>("/v1/dns", &()).await?;
            client.post::<Dns>("/v1/dns/revert", &()).await?;
            (before.device, before.state == DnsState::Applied)
        } else {
            (None, false)
        };
        let mut host = HostDns::new(DnsMode::Auto, &state(context)?);
        let reverted = match host.revert(device.as_deref()).await? {
            Reverted::LeftTheirs => "left_theirs",
            // The node itself did it.
            Reverted::Nothing if was_applied => "restored",
            Reverted::Nothing => "nothing",
            Reverted::Restored => "restored",
        };
        context.out.done(&Done { reverted })
    }
}

impl Show for Done {
    fn show(&self) -> String {
        match self.reverted {
            "left_theirs" => {
                "another program changed the host's DNS settings since; they stay as they are"
            }
            "restored" => "the host's DNS settings are as they were",
            _ => "nothing of ours was left in the host's DNS settings",
        }
        .to_owned()
    }
}

impl From<DnsError> for Failure {
    fn from(error: DnsError) -> Self {
        let exit = if error.is_lack_of_rights() {
            Exit::Denied
        } else {
            Exit::Failed
        };
        let cure = error.cure();
        Self::of(exit, &error).hint(cure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(search: &str, domain: &str) -> Dns {
        Dns {
            search: vec![search.to_owned()],
            domains: vec![domain.to_owned()],
            ..Dns::default()
        }
    }

    /// The node may run as another user than who sets the host's DNS for it.
    #[test]
    fn root_takes_domains_from_a_node_and_nothing_else() {
        let zone = "5.5.4.4.3.3.2.2.1.1.d.f.ip6.arpa";
        assert!(wanted(&told("acme.agent", zone)).is_ok());

        for strange in [
            "acme.agent\nnameserver 192.0.2.1",
            "acme.agent other.example",
            "a,b",
            "",
            ".",
            "agent.",
            "[global-dns]",
            &"a.".repeat(127),
        ] {
            assert!(wanted(&told(strange, zone)).is_err(), "{strange:?}");
            assert!(wanted(&told("acme.agent", strange)).is_err(), "{strange:?}");
        }
    }

    #[test]
    fn every_mode_is_known_by_its_name() {
        for (name, expected) in [
            ("auto", DnsMode::Auto),
            ("networkmanager", DnsMode::NetworkManager),
            ("none", DnsMode::None),
            ("resolv-conf", DnsMode::ResolvConf),
            ("resolvconf", DnsMode::Resolvconf),
            ("resolved", DnsMode::Resolved),
            ("of a newer node", DnsMode::Auto),
        ] {
            let dns = Dns {
                mode: name.to_owned(),
                ..Dns::default()
            };
            assert_eq!(mode(&dns), expected);
        }
    }
}
