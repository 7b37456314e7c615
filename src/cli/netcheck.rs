use clap::Args;

use crate::cli::client::Client;
use crate::cli::context::Context;
use crate::cli::failure::{Exit, Failure};
use crate::cli::output::Show;
use crate::cli::text::{Table, millis};
use crate::config::{Flags, NodeConfig};
use crate::node::netcheck::{self, Plan};
use crate::wire::api::local::{
    NatFiltering, NatMappingKind, Netcheck, NetcheckFamily, NetcheckReach, NetcheckTargets,
};

/// Find out what the network this host is in does to agents: NAT, UDP, gateways, proxies
#[derive(Args, Debug)]
#[command(after_help = "\
Takes some 10 s at most. Needs no running node: without one, the settings and the state on disk say \
whom to ask. The router is asked for a port, which is given back at once, unless path.port_mapping is \
off or path.mode tells nobody where this host is. Exits with 5 when no gateway is reached at all.")]
pub(super) struct NetcheckArgs {}

impl NetcheckArgs {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let config = context.node_config(Flags::default())?;
        let client = context.client()?;
        let plan = plan(context, &config, &client).await?;
        let check = netcheck::run(&plan).await;
        context.out.print(&check)?;
        if netcheck::is_cut_off(&check) {
            let cure = check
                .findings
                .iter()
                .find(|one| one.code != "captive_portal");
            let cure = cure.map_or("", |one| one.cure.as_str());
            return Err(Failure::new(Exit::Unreachable, "no gateway is reached").hint(cure));
        }
        Ok(())
    }
}

/// Plans a check: a running node says whom to ask, or the state on disk.
pub(super) async fn plan(
    context: &Context,
    config: &NodeConfig,
    client: &Client,
) -> Result<Plan, Failure> {
    let (targets, daemon) = if client.is_up() {
        match client.get::<NetcheckTargets>("/v1/netcheck", &()).await {
            Ok(targets) => (targets, true),
            // A node of before this command.
            Err(failure) if failure.exit == Exit::NotFound => (stored(context, config), false),
            Err(failure) => return Err(failure),
        }
    } else {
        (stored(context, config), false)
    };
    let plan = Plan::new(config, targets, daemon);
    plan.map_err(|error| Failure::usage(format!("the proxy cannot be used: {error}")))
}

/// Returns whom the state on disk names; nobody where it may not be read.
fn stored(context: &Context, config: &NodeConfig) -> NetcheckTargets {
    netcheck::stored(config).unwrap_or_else(|error| {
        let why = Failure::from(error).what;
        context
            .out
            .note(&format!("only servers of the settings are asked: {why}"));
        NetcheckTargets::default()
    })
}

impl Show for Netcheck {
    fn show(&self) -> String {
        let mut lines = Vec::new();
        for (name, family) in [("IPv4", &self.ipv4), ("IPv6", &self.ipv6)] {
            lines.extend(family_lines(name, family));
        }
        lines.extend(self.wss.iter().map(|one| reach_line("WebSocket", one)));
        lines.extend(
            self.registries
                .iter()
                .map(|one| reach_line("registry", one)),
        );
        lines.push(line("router", &self.router_text()));
        if let Some(portal) = &self.captive_portal {
            let to = portal.location.as_ref();
            let to = to.map_or_else(String::new, |to| format!(", sends to {to}"));
            let text = format!(
                "{} answers {} in place of ours{to}",
                portal.url, portal.status
            );
            lines.push(line("portal", &text));
        }
        let mut table = Table::new(["SERVER", "RTT", "SEES US AT", "GATEWAY"]);
        for server in &self.servers {
            let dash = || "-".to_owned();
            table.row([
                server.name.clone(),
                server.rtt_ms.map_or_else(|| "no answer".to_owned(), millis),
                server.observed.map_or_else(dash, |at| at.to_string()),
                server.gateway.map_or_else(dash, |id| id.to_string()),
            ]);
        }
        let mut parts = vec![lines.join("\n"), table.text("no server to ask is known")];
        for finding in &self.findings {
            let (text, cure) = (&finding.text, &finding.cure);
            parts.push(format!("warning: {text}\n  cure: {cure}"));
        }
        parts.join("\n\n")
    }
}

impl Netcheck {
    fn router_text(&self) -> String {
        match &self.port_mapping {
            None => "not asked for a port, as the settings say".to_owned(),
            Some(mapping) => match (mapping.external, &mapping.error) {
                (Some(at), _) => {
                    let by = mapping.protocol.as_deref().unwrap_or("a port mapping");
                    format!("maps a port when asked ({by}), as {at}")
                }
                (None, Some(error)) => format!("maps no port ({error})"),
                (None, None) => "maps no port".to_owned(),
            },
        }
    }
}

fn line(name: &str, text: &str) -> String {
    format!("{name:<12}{text}")
}

fn reach_line(name: &str, reach: &NetcheckReach) -> String {
    let by = reach.proxy.as_ref();
    let by = by.map_or_else(String::new, |proxy| format!(" through the proxy {proxy}"));
    let text = match (reach.took_ms, &reach.error) {
        (Some(took), _) => format!("{} reached in {}{by}", reach.url, millis(took)),
        (None, Some(error)) => format!("{} not reached{by}: {}", reach.url, error.text),
        (None, None) => format!("{} not reached{by}", reach.url),
    };
    line(name, &text)
}

fn family_lines(name: &str, family: &NetcheckFamily) -> Vec<String> {
    let Some(udp) = family.udp else {
        return vec![line(name, "no server to ask")];
    };
    let Some(address) = family.address else {
        return vec![line(name, "no way out of this host")];
    };
    if !udp {
        return vec![line(
            name,
            &format!("from {address}, and UDP brings no answer"),
        )];
    }
    let seen = family
        .observed
        .map_or_else(String::new, |at| format!(", seen as {at}"));
    let nat = match family.nat {
        Some(true) => "behind a NAT",
        Some(false) => "no NAT",
        None => "whether there is a NAT is not known",
    };
    let mut lines = vec![line(
        name,
        &format!("UDP works from {address}{seen}, {nat}"),
    )];
    let mut tell = |what: &str, text: String| lines.push(format!("  {what:<10}{text}"));
    if family.nat != Some(false) {
        let port = match family.port_kept {
            Some(true) => ", and keeps our port",
            Some(false) | None => "",
        };
        tell("mapping", format!("{}{port}", mapping_text(family.mapping)));
        let hairpin = match family.hairpin {
            Some(true) => "hosts behind it reach each other by the outer endpoint",
            Some(false) => "none: hosts behind it reach each other by their inner addresses alone",
            None => "not known",
        };
        tell("hairpin", hairpin.to_owned());
    }
    tell("filtering", filtering_text(family.filtering).to_owned());
    let mtu = family.mtu.map_or_else(
        || "not known".to_owned(),
        |mtu| format!("{mtu} bytes reach the gateway"),
    );
    tell("MTU", mtu);
    lines
}

const fn mapping_text(mapping: Option<NatMappingKind>) -> &'static str {
    match mapping {
        Some(NatMappingKind::EndpointIndependent) => "one endpoint for all destinations",
        Some(NatMappingKind::AddressDependent) => "another endpoint for each address",
        Some(NatMappingKind::AddressAndPortDependent) => {
            "another endpoint for each address and port"
        }
        Some(NatMappingKind::EndpointDependent) => "other endpoints for other destinations",
        None => "not known: one server tells too little (a second one, or one of RFC 5780)",
    }
}

const fn filtering_text(filtering: Option<NatFiltering>) -> &'static str {
    match filtering {
        Some(NatFiltering::EndpointIndependent) => "none: everybody may answer",
        Some(NatFiltering::AddressDependent) => "by address: whom we sent something may answer",
        Some(NatFiltering::AddressAndPortDependent) => {
            "by address and port: endpoints we sent something may answer"
        }
        Some(NatFiltering::NotPortDependent) => "not by port; whether by address is not known",
        None => "not known: no gateway or server here has a second port (RFC 5780)",
    }
}
