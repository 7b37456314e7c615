//! The kernel's per-device IPv6 settings, which hosts and container runtimes set against us.

use std::{fs, io, path::PathBuf};

use thiserror::Error;

const ROOT: &str = "/proc/sys/net/ipv6/conf";

/// What stops a device from carrying IPv6.
#[derive(Debug, Error)]
pub enum SysctlError {
    #[error("this kernel has IPv6 switched off (no {ROOT}); boot without ipv6.disable=1")]
    NoIpv6,
    #[error("net.ipv6.conf.{device}.{key} is {found}, must be {wanted} and cannot be written")]
    Stuck {
        device: String,
        key: &'static str,
        found: String,
        wanted: &'static str,
        #[source]
        source: io::Error,
    },
}

/// Lets `device` carry IPv6 with exactly the addresses it is given.
///
/// It must be done while the device is down: the kernel's own fe80 address comes with "up".
pub fn prepare(device: &str) -> Result<(), SysctlError> {
    if !PathBuf::from(ROOT).is_dir() {
        return Err(SysctlError::NoIpv6);
    }
    // 1 is "none": no link-local address, so no neighbour or router discovery into the overlay.
    set(device, "addr_gen_mode", "1")?;
    set(device, "disable_ipv6", "0")?;
    // The filter drops router advertisements anyway; this only keeps the kernel quiet.
    set(device, "accept_ra", "0").or_else(|error| match error {
        SysctlError::Stuck { .. } => {
            tracing::debug!(%error, "Router advertisements stay accepted");
            Ok(())
        }
        SysctlError::NoIpv6 => Err(error),
    })
}

/// Writes a value only if it differs, so that a read-only /proc/sys that is right is no obstacle.
fn set(device: &str, key: &'static str, wanted: &'static str) -> Result<(), SysctlError> {
    let path = PathBuf::from(ROOT).join(device).join(key);
    let read = fs::read_to_string(&path);
    let found = read.as_deref().map_or("unreadable", str::trim).to_owned();
    if found == wanted {
        return Ok(());
    }
    fs::write(&path, wanted).map_err(|source| SysctlError::Stuck {
        device: device.to_owned(),
        key,
        found,
        wanted,
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_that_cannot_be_written_is_named() {
        let error = prepare("no-such-device").unwrap_err();

        let text = error.to_string();
        let named = text.contains("net.ipv6.conf.no-such-device.addr_gen_mode");
        assert!(named || matches!(error, SysctlError::NoIpv6), "{text}");
    }
}
