//! What one agent has on this host: its network device, address and route.

use thiserror::Error;
use tracing::info;

use crate::dataplane::Device;
use crate::id::OverlayIp;
use crate::node::driver::{Handle, Stopped};
use crate::os::route::{RouteError, Routing};
use crate::os::tun::{self, TunError};

/// MTU of the TUN; the data plane cuts packets to what each path carries (protocol.md section 8).
pub(super) const MTU: u16 = 8920; // bytes: an underlay of 9000 carries it directly, over IPv6 too

/// Why an agent has no network device.
#[derive(Debug, Error)]
pub enum DeviceError {
    #[error(transparent)]
    Tun(#[from] TunError),
    #[error(transparent)]
    Route(#[from] RouteError),
    #[error("cannot answer names in the program's namespace: {0}")]
    Names(#[source] std::io::Error),
    #[error("cannot watch the network device: {0}")]
    Watch(#[source] std::io::Error),
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// Makes an agent's device, gives it the address and hands it to the data plane.
///
/// With `offload` the kernel may merge and cut its packets. Returns the device's name. The device goes when the data plane lets go of it.
pub(super) async fn bring_up(
    handle: &Handle,
    local: OverlayIp,
    offload: bool,
) -> Result<String, DeviceError> {
    let (plane, home) = handle
        .call(move |core| (core.dataplane().clone(), core.home(local)))
        .await?;
    let device = tun::create(tun::ANY_NAME, MTU, offload, plane.workers())?;
    Routing::open()?
        .attach(&device.name, device.index, local)
        .await?;
    let taken = Device {
        fds: device.fds,
        has_header: device.has_header,
        has_udp_offload: device.has_udp_offload,
    };
    plane
        .add_tun(local, home, taken)
        .await
        .map_err(DeviceError::Watch)?;
    info!(device = %device.name, "Network device ready");
    Ok(device.name)
}
