use clap::Args;

use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::output::Show;
use crate::cli::text::{indented, list, millis, span, until};
use crate::wire::api::local::{
    AgentStatus, GatewayStatus, LinkState, NatMapping, PortMappingStatus, Status,
};

/// Show this node and its agents, and what needs attention
#[derive(Args, Debug)]
pub(super) struct StatusArgs {}

impl StatusArgs {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let status = context.client()?.get::<Status>("/v1/status", &()).await?;
        context.out.print(&status)
    }
}

impl Show for Status {
    fn show(&self) -> String {
        let mut parts = vec![format!(
            "agentnet {}, up for {}, process {}, UDP {}, DNS {}",
            self.version,
            span(self.now.since(self.started).as_secs()),
            self.pid,
            list(&self.udp),
            self.dns,
        )];
        for agent in &self.agents {
            parts.push(format!(
                "{}\n{}",
                agent.name,
                indented(&self.agent_text(agent))
            ));
        }
        if self.agents.is_empty() {
            parts.push("no agent yet; join a network: agentnet join --token-file FILE".to_owned());
        }
        if !self.stun.is_empty() {
            parts.push(self.stun_text());
        }
        if let Some(PortMappingStatus {
            external: Some(at),
            protocol,
            ..
        }) = &self.port_mapping
        {
            let by = protocol.as_deref().unwrap_or("a port mapping");
            parts.push(format!("the router leads {at} here ({by})"));
        }
        if !self.drops.is_empty() {
            let drops = self.drops.iter().map(|(reason, n)| format!("{reason} {n}"));
            parts.push(format!(
                "dropped packets: {}",
                drops.collect::<Vec<_>>().join(", ")
            ));
        }
        for warning in &self.warnings {
            parts.push(format!(
                "warning: {}\n  cure: {}",
                warning.text, warning.cure
            ));
        }
        parts.join("\n\n")
    }
}

impl Status {
    fn agent_text(&self, agent: &AgentStatus) -> String {
        let device = match (agent.device.as_deref(), agent.program) {
            (Some(device), Some(process)) => format!("{device} of process {process}"),
            (Some(device), None) => match &agent.bound {
                Some(bound) => format!("{device}, for {bound} alone"),
                None => device.to_owned(),
            },
            (None, _) if agent.apart => "no device: no program runs (agentnet run)".to_owned(),
            (None, _) => "no device".to_owned(),
        };
        let renews = if agent.membership.renews {
            "renews itself, else "
        } else {
            ""
        };
        let ends = until(self.now, agent.membership.expires);
        let waiting = match agent.pending {
            0 => String::new(),
            n => format!(", {n} waiting for an answer (agentnet trust pending)"),
        };
        let best = agent.gateway.as_ref();
        let is_other = |other: &&GatewayStatus| best.is_none_or(|best| best.id != other.id);
        let others = agent.gateways.iter().filter(is_other);
        let others = others.map(|other| ("", self.gateway_text(Some(other))));
        let first = [
            ("address", format!("{} on {device}", agent.address)),
            (
                "network",
                format!("{}  {}", agent.network, agent.network_id),
            ),
            ("id", agent.id.to_string()),
            ("registry", self.registry_text(agent)),
            ("gateway", self.gateway_text(best)),
        ];
        let last = [
            ("membership", format!("{renews}ends {ends}")),
            ("peers", format!("{}{waiting}", agent.peers)),
        ];
        let lines = first.into_iter().chain(others).chain(last);
        let lines = lines.map(|(name, value)| format!("{name:<12}{value}"));
        lines.collect::<Vec<_>>().join("\n")
    }

    fn stun_text(&self) -> String {
        let seen = self.stun.iter().map(|stun| match stun.observed {
            Some(at) => format!("{} sees us at {at}", stun.server),
            None => format!("{} does not answer", stun.server),
        });
        let mapping = match self.nat_mapping {
            Some(NatMapping::EndpointDependent) => {
                "the NAT maps by destination: peers behind such a one too are not reached directly"
            }
            Some(NatMapping::EndpointIndependent) => "one endpoint for all destinations",
            None => "how the NAT maps is not known",
        };
        format!("STUN: {}; {mapping}", seen.collect::<Vec<_>>().join(", "))
    }

    fn registry_text(&self, agent: &AgentStatus) -> String {
        let registry = &agent.registry;
        let since = span(self.now.since(registry.since).as_secs());
        match (&registry.error, registry.state) {
            (Some(why), state) => format!("{state} for {since}  {}: {why}", registry.url),
            (None, state) => format!("{state} for {since}  {}", registry.url),
        }
    }

    fn gateway_text(&self, gateway: Option<&GatewayStatus>) -> String {
        let Some(gateway) = gateway else {
            return "none known yet".to_owned();
        };
        let since = span(self.now.since(gateway.since).as_secs());
        let mut text = format!("{} for {since}  {}", gateway.state, gateway.endpoint);
        if let Some(proxy) = &gateway.proxy {
            text.push_str(&format!(", through the proxy {proxy}"));
        }
        if let Some(rtt) = gateway.rtt_ms {
            text.push_str(&format!(", {}", millis(rtt)));
        }
        if let (Some(observed), LinkState::Connected) = (gateway.observed, gateway.state) {
            text.push_str(&format!(", sees us at {observed}"));
        }
        text
    }
}
