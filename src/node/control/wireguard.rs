use std::net::SocketAddr;

use crate::engine::wireguard::{Which, WireGuard, WireGuardError, WireGuardView};
use crate::id::{FullName, OverlayIp, WireGuardKey};
use crate::node::{
    control::{choose, kept, list},
    driver::{Core, now},
    running::Node,
};
use crate::os::clock;
use crate::wire::api::{
    local::{
        OfAgent, WireGuardAdd, WireGuardAdded, WireGuardOwn, WireGuardPeer, WireGuardPeers,
        WireGuardRef, WireGuardRemove, WireGuardRemoved,
    },
    problem::{Code, Problem},
};

impl From<WireGuardError> for Problem {
    fn from(error: WireGuardError) -> Self {
        let code = match error {
            WireGuardError::AddressOutside(..) => Code::AddressOutside,
            WireGuardError::AddressOfAgent(_)
            | WireGuardError::AddressOwn(_)
            | WireGuardError::AddressTaken(_) => Code::AddressTaken,
            WireGuardError::Endpoint(_) => Code::BadRequest,
            WireGuardError::Full => Code::NoRoom,
            WireGuardError::KeyOfAgent | WireGuardError::KeyOwn | WireGuardError::KeyTaken(_) => {
                Code::KeyTaken
            }
            WireGuardError::NotFound => Code::NotFound,
        };
        Self {
            hint: hint(&error).to_owned(),
            ..Self::with(code, error)
        }
    }
}

const fn hint(error: &WireGuardError) -> &'static str {
    match error {
        WireGuardError::AddressOutside(..) => {
            "choose one of that network, or leave --address out: it follows from the key then"
        }
        WireGuardError::AddressOfAgent(_)
        | WireGuardError::AddressOwn(_)
        | WireGuardError::AddressTaken(_) => {
            "choose another, or leave --address out: it follows from the key then"
        }
        WireGuardError::Endpoint(_) => {
            "name the address and UDP port of the other host outside the overlay, as 192.0.2.1:51820"
        }
        WireGuardError::Full => "remove some: agentnet wireguard remove",
        WireGuardError::KeyOfAgent => "it is an agent: ask it for trust (agentnet trust request)",
        WireGuardError::KeyOwn => "give the key of the other end: wg show INTERFACE public-key",
        WireGuardError::KeyTaken(_) => "remove that one first: agentnet wireguard remove",
        WireGuardError::NotFound => "agentnet wireguard list shows which there are",
    }
}

pub(super) async fn add(node: &Node, add: WireGuardAdd) -> Result<WireGuardAdded, Problem> {
    let port = node.port;
    let added = node.handle.call(move |core| {
        let local = choose(core, add.agent.as_deref())?;
        let address = match add.address {
            Some(address) => address,
            None => derived(core, local, &add.key)?,
        };
        let new = WireGuard {
            key: add.key,
            address,
            endpoint: add.endpoint.map(canonical),
            allow: add.allow,
            preshared_key: add.preshared_key,
        };
        let done = core.engine.add_wireguard(local, new, now());
        done.ok_or_else(|| Problem::new(Code::NotFound))??;
        let published = core.settle_now();
        kept(core)?;
        let peers = of_agent(core, local);
        let peer = peers.into_iter().find(|peer| peer.address == address);
        let (peer, own) = (peer, own(core, local, port));
        let missing = || Problem::new(Code::NotFound);
        Ok::<_, Problem>((
            peer.ok_or_else(missing)?,
            own.ok_or_else(missing)?,
            published,
        ))
    });
    let (peer, own, published) = added.await??;
    if let Some(published) = published {
        // The workers are gone only when the daemon stops.
        drop(published.await);
    }
    Ok(WireGuardAdded { peer, own })
}

fn derived(core: &Core, local: OverlayIp, key: &WireGuardKey) -> Result<OverlayIp, Problem> {
    let membership = core.engine.membership(local);
    let prefix = membership
        .ok_or_else(|| Problem::new(Code::NotFound))?
        .prefix;
    let address = prefix.address_of_wireguard(key);
    address.map_err(|error| Problem::with(Code::BadRequest, error))
}

/// A mapped address is IPv4 written in another way.
fn canonical(endpoint: SocketAddr) -> SocketAddr {
    SocketAddr::new(endpoint.ip().to_canonical(), endpoint.port())
}

pub(super) async fn remove(
    node: &Node,
    remove: WireGuardRemove,
) -> Result<WireGuardRemoved, Problem> {
    let removed = node.handle.call(move |core| {
        let local = choose(core, remove.agent.as_deref())?;
        let which = match remove.peer {
            WireGuardRef::Address(address) => Which::Address(address),
            WireGuardRef::Key(key) => Which::Key(key),
        };
        let done = core
            .engine
            .change(local, now(), |m, _| m.remove_wireguard(which));
        let gone = done.ok_or_else(|| Problem::new(Code::NotFound))??;
        let barrier = core.settle_now();
        Ok::<_, Problem>((gone, barrier, kept(core)))
    });
    let (gone, barrier, kept) = removed.await??;
    if let Some(barrier) = barrier {
        // The workers are gone only when the daemon stops, and then nothing passes either.
        drop(barrier.await);
    }
    kept?;
    Ok(WireGuardRemoved {
        key: gone.key,
        address: gone.address,
    })
}

pub(super) async fn peers(node: &Node, of: OfAgent) -> Result<WireGuardPeers, Problem> {
    let port = node.port;
    let found = node.handle.call(move |core| {
        let locals = list::meant(core, of.agent.as_deref())?;
        let own = locals.iter().filter_map(|local| own(core, *local, port));
        Ok(WireGuardPeers {
            now: clock::unix(),
            own: own.collect(),
            peers: locals.iter().flat_map(|l| of_agent(core, *l)).collect(),
        })
    });
    found.await?
}

/// Returns the peers of one agent that speak only WireGuard.
pub(super) fn of_agent(core: &Core, local: OverlayIp) -> Vec<WireGuardPeer> {
    let Some(name) = core.engine.name(local) else {
        return Vec::new();
    };
    let views = core.engine.wireguard(local, now()).into_iter();
    views.map(|view| peer(&name, view)).collect()
}

fn peer(own: &FullName, view: WireGuardView) -> WireGuardPeer {
    WireGuardPeer {
        key: view.kept.key,
        address: view.kept.address,
        agent: own.to_string(),
        state: list::session(view.state),
        endpoint: view.endpoint,
        preshared_key: view.kept.preshared_key.is_some(),
        last_handshake: view.stats.last_handshake.map(list::wall),
        last_inbound: view.stats.last_received.map(list::wall),
        rx_bytes: view.stats.received,
        tx_bytes: view.stats.sent,
        inbound: view.kept.allow,
    }
}

/// What the other end's configuration says of one of our agents.
fn own(core: &Core, local: OverlayIp, port: u16) -> Option<WireGuardOwn> {
    let candidates = core.engine.endpoints(local).into_iter();
    Some(WireGuardOwn {
        agent: core.engine.name(local)?.to_string(),
        key: WireGuardKey::of(&core.engine.membership(local)?.tunnel),
        address: local,
        port,
        endpoints: candidates.map(|candidate| candidate.endpoint).collect(),
    })
}
