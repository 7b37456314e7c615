//! One text for those who look for a fault, without what is nobody's business: `agentnet bugreport`.

mod redact;

use crate::config::NodeConfig;
use crate::engine::membership::Membership;
use crate::node::owner::Owner;
use crate::node::store;
use crate::os::{clock, inspect};
use crate::wire::api::local::Status;

use redact::Redactor;

/// Most of one part; its end is the newest.
const MAX_PART: usize = 1 << 20; // bytes

/// The suffix of everybody, which tells nothing.
const COMMON: &str = "agent";

/// What is told of one thing.
#[derive(Clone, Debug)]
pub enum Part {
    /// Why it is not there.
    Missing(String),
    Text(String),
}

/// A report under way.
#[derive(Debug)]
pub struct Report {
    redactor: Redactor,
    suffix: String,
    text: String,
}

impl Report {
    /// Begins a report in which `names`, full ones of agents, are replaced.
    pub fn new(config: &NodeConfig, names: &[String]) -> Self {
        let suffix = config.suffix.to_string();
        let mut redactor = Redactor::default();
        for name in names {
            redactor.full_name(name, &suffix);
        }
        if suffix != COMMON {
            redactor.word("suffix", &suffix);
        }
        for network in Owner::new(&config.state).list().unwrap_or_default() {
            redactor.word("network", &network.label.to_string());
        }
        let machine = inspect::host_name();
        if !["agentnet", "localhost"].contains(&machine.as_str()) {
            redactor.word("machine", &machine);
        }
        let known = config.search.discover.iter().chain(&config.search.dns);
        known.for_each(|place| redactor.endpoint(place));
        if let Some(home) =
            std::env::home_dir().and_then(|home| home.into_os_string().into_string().ok())
            && home != "/"
        {
            redactor.phrase("home", &home);
        }
        let text = format!(
            "agentnet {} bug report of {}\nLinux {}, {}\n",
            env!("CARGO_PKG_VERSION"),
            clock::unix(),
            inspect::kernel(),
            inspect::distribution(),
        );
        Self {
            redactor,
            suffix,
            text,
        }
    }

    /// Replaces names of hosts that a node speaks of.
    pub fn hide_hosts(&mut self, status: &Status) {
        for agent in &status.agents {
            self.redactor.full_name(&agent.name, &self.suffix);
            for gateway in &agent.gateways {
                let places = [Some(&gateway.endpoint), gateway.proxy.as_ref()];
                let places = places.into_iter().flatten();
                places.for_each(|place| self.redactor.endpoint(place));
            }
        }
    }

    /// Adds what is known of one thing.
    pub fn add(&mut self, title: &str, part: Part) {
        let text = match part {
            Part::Missing(why) => format!("(not there: {why})"),
            Part::Text(text) => text,
        };
        let mut start = text.len().saturating_sub(MAX_PART);
        while !text.is_char_boundary(start) {
            start += 1;
        }
        let kept = self.redactor.redact(text.get(start..).unwrap_or_default());
        self.text
            .push_str(&format!("\n== {title}\n\n{}\n", kept.trim_end()));
    }

    /// Returns the text.
    pub fn finish(self) -> String {
        self.text
    }
}

/// Returns the names of agents that the state on disk has, for a host whose daemon does not run.
pub fn names_on_disk(config: &NodeConfig) -> Vec<String> {
    let state = store::read(&config.state).unwrap_or_default();
    state.memberships.iter().flat_map(names_of).collect()
}

fn names_of(membership: &Membership) -> Vec<String> {
    let own = membership.name();
    let peers = membership.given.keys().chain(membership.received.keys());
    let peers = peers.chain(membership.incoming.keys());
    let peers = peers.filter_map(|did| membership.name_of(did));
    let peers = peers.map(|name| name.to_string());
    let asked = membership.outgoing.values();
    let asked = asked.map(|request| request.claims().to.to_string());
    let own = own.into_iter().map(|name| name.to_string());
    own.chain(peers).chain(asked).collect()
}
