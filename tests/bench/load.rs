//! What `scripts/bench` sends at data planes, and what receives there: small programs of its own, since
//! those at hand cost more than the data planes they would measure.
//!
//! ```text
//! load blast ADDRESS:PORT SIZE SECONDS                    datagrams of SIZE bytes, as fast as they go
//! load sink ADDRESS:PORT                                  counts what comes until it is silent for 1 s
//! load garbage ADDRESS:PORT RATE SECONDS [CHANNEL...]     RATE datagrams a second that mean nothing
//! load state DIRECTORY COUNT                              a node's state, with COUNT consented peers
//! load peers COUNT ADDRESS:PORT NETWORK SECONDS           those peers, from the addresses of NETWORK/14
//! load gateway DIRECTORY ADDRESS:PORT                     a gateway's directory, for the agents below
//! load relay ADDRESS:PORT NETWORK SIZE SECONDS            frames of one agent to another by that gateway
//! load attached COUNT ADDRESS:PORT NETWORK SECONDS        agents that are attached and say nothing
//! load restart PAIRS ADDRESS:PORT NETWORK DIRECTORY AGENTNET   pairs whose gateway is killed and started again
//! ```
//!
//! Each prints one line of JSON.
#![expect(clippy::print_stdout, reason = "its figures are all it is for")]

#[path = "load/flood.rs"]
mod flood;
#[path = "load/gateway.rs"]
mod gateway;
#[path = "load/peers.rs"]
mod peers;

use std::{env, time::Duration};

use anyhow::{Context, Result, bail};

fn main() -> Result<()> {
    let given = env::args().skip(1).collect::<Vec<_>>();
    let given = given.iter().map(String::as_str).collect::<Vec<_>>();
    let told = match given.as_slice() {
        ["blast", to, size, seconds] => {
            let size = size.parse().context("SIZE is a number of bytes")?;
            flood::blast(address(to)?, size, time(seconds)?)
        }
        ["sink", at] => flood::sink(address(at)?),
        ["garbage", to, rate, seconds, channels @ ..] => {
            let rate = rate.parse().context("RATE is a number")?;
            let channels = channels.iter().map(|id| id.parse());
            let channels = channels.collect::<Result<Vec<u32>, _>>();
            let channels = channels.context("CHANNEL is a number")?;
            flood::garbage(address(to)?, rate, time(seconds)?, &channels)
        }
        ["state", directory, count] => {
            let count = count.parse().context("COUNT is a number")?;
            peers::state(directory.as_ref(), count)
        }
        ["peers", count, to, network, seconds] => {
            let count = count.parse().context("COUNT is a number")?;
            let network = network.parse().context("NETWORK is an IPv4 address")?;
            peers::run(count, address(to)?, network, time(seconds)?)
        }
        ["gateway", directory, at] => gateway::make(directory.as_ref(), address(at)?),
        ["relay", to, network, size, seconds] => {
            let size = size.parse().context("SIZE is a number of bytes")?;
            gateway::relay(address(to)?, ip(network)?, size, time(seconds)?)
        }
        ["attached", count, to, network, seconds] => {
            let count = count.parse().context("COUNT is a number")?;
            gateway::attached(count, address(to)?, ip(network)?, time(seconds)?)
        }
        ["restart", pairs, to, network, directory, binary] => {
            let pairs = pairs.parse().context("PAIRS is a number")?;
            let (to, network) = (address(to)?, ip(network)?);
            gateway::restart(pairs, to, network, directory.as_ref(), binary.as_ref())
        }
        _ => bail!(
            "usage: load blast | sink | garbage | state | peers | gateway | relay | attached | restart, see tests/bench/load.rs"
        ),
    };
    println!("{}", told?);
    Ok(())
}

fn ip(text: &str) -> Result<std::net::Ipv4Addr> {
    text.parse().context("NETWORK is an IPv4 address")
}

fn address(text: &str) -> Result<std::net::SocketAddr> {
    text.parse().context("ADDRESS:PORT, [ADDRESS]:PORT")
}

fn time(text: &str) -> Result<Duration> {
    let seconds = text.parse().context("SECONDS is a number")?;
    Ok(Duration::from_secs_f64(seconds))
}
