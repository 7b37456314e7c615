//! The system bus (D-Bus), over which some owners of DNS settings are spoken to.

use std::time::Duration;

use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;
use zbus::connection::Builder;
use zbus::{Connection, DynamicType, Message, Type, as_variant, fdo};

use crate::os::dns::detect::Service;

/// Longest wait for an answer: a service may have to be started for it, and polkit with it.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why a service of the system bus did not do what it was asked.
#[derive(Clone, Debug, Error)]
pub enum BusError {
    #[error("{service} refuses {method} to this user")]
    Denied {
        service: &'static str,
        method: &'static str,
    },
    #[error("{service} failed at {method}")]
    Failed {
        service: &'static str,
        method: &'static str,
        #[source]
        source: zbus::Error,
    },
    #[error("the system bus (D-Bus) is not to be had")]
    NoBus(#[source] zbus::Error),
}

/// A connection to the system bus.
#[derive(Clone, Debug)]
pub(super) struct Bus(Connection);

/// An interface of an object of a service.
#[derive(Clone, Copy, Debug)]
pub(super) struct Object<'a> {
    pub service: &'static str,
    pub path: &'a str,
    pub interface: &'static str,
}

/// The bus itself (D-Bus specification, "Message Bus Messages").
pub(super) const DAEMON: Object<'static> = Object {
    service: "org.freedesktop.DBus",
    path: "/org/freedesktop/DBus",
    interface: "org.freedesktop.DBus",
};

impl Bus {
    pub(super) async fn open() -> Result<Self, BusError> {
        let opening = Builder::system().method_timeout(TIMEOUT).build();
        match tokio::time::timeout(TIMEOUT, opening).await {
            Ok(opened) => opened.map(Self).map_err(BusError::NoBus),
            Err(_elapsed) => Err(BusError::NoBus(zbus::Error::Handshake(
                "no answer in time".to_owned(),
            ))),
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    pub(super) const fn connection(&self) -> &Connection {
        &self.0
    }

    /// Calls a method and waits for its answer.
    pub(super) async fn call<B: Serialize + DynamicType>(
        &self,
        object: Object<'_>,
        method: &'static str,
        body: &B,
    ) -> Result<Message, BusError> {
        let Object {
            service,
            path,
            interface,
        } = object;
        let called = self
            .0
            .call_method(Some(service), path, Some(interface), method, body);
        called.await.map_err(|source| {
            if is_denied(&source) {
                return BusError::Denied { service, method };
            }
            BusError::Failed {
                service,
                method,
                source,
            }
        })
    }

    /// Returns a property of an object.
    pub(super) async fn property<T: DeserializeOwned + Type>(
        &self,
        object: Object<'_>,
        name: &str,
    ) -> Result<T, BusError> {
        let properties = Object {
            interface: "org.freedesktop.DBus.Properties",
            ..object
        };
        let answer = self
            .call(properties, "Get", &(object.interface, name))
            .await?;
        let body = answer.body();
        let read = body.deserialize::<as_variant::Deserialize<'_, T>>();
        read.map(|value| value.0)
            .map_err(|source| BusError::Failed {
                service: object.service,
                method: "Get",
                source,
            })
    }

    /// Tells whether a service is to be had.
    pub(super) async fn service(&self, name: &str) -> Result<Service, BusError> {
        let failed = |method| {
            move |source| BusError::Failed {
                service: DAEMON.service,
                method,
                source,
            }
        };
        let owned = self.call(DAEMON, "NameHasOwner", &name).await?;
        if owned
            .body()
            .deserialize::<bool>()
            .map_err(failed("NameHasOwner"))?
        {
            return Ok(Service::Running);
        }
        let names = self.call(DAEMON, "ListActivatableNames", &()).await?;
        let names = names.body().deserialize::<Vec<String>>();
        let names = names.map_err(failed("ListActivatableNames"))?;
        let known = names.iter().any(|known| known == name);
        Ok(if known {
            Service::Activatable
        } else {
            Service::Absent
        })
    }
}

fn is_denied(error: &zbus::Error) -> bool {
    if let zbus::Error::FDO(error) = error {
        return matches!(
            **error,
            fdo::Error::AccessDenied(_)
                | fdo::Error::AuthFailed(_)
                | fdo::Error::InteractiveAuthorizationRequired(_)
        );
    }
    // NetworkManager has an error of its own.
    matches!(error, zbus::Error::MethodError(name, ..) if name.as_str().ends_with(".PermissionDenied"))
}
