//! Pure: who may make which call.

use crate::statement::Role;

/// What a caller wants to do.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Call {
    Activate,
    Consent,
    CreateNetwork,
    EnrolGateway,
    FindHolder,
    Join,
    Leave,
    ListNetworks,
    ListTokens,
    PutRecord,
    RefreshGateway,
    RegisterToken,
    Request,
    Resolve,
    Revoke,
    WatchDomain,
    WatchNetwork,
}

/// What a proven key is to this registry, and to the network the call names.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Standing {
    pub operator: bool,
    pub gateway: bool,
    /// Whether it is the network's root key, or the key its root grant names.
    pub owner: bool,
    /// The role in its live record; None when it has none.
    pub role: Option<Role>,
}

/// Tells whether a key of this standing may make the call at all.
///
/// What the call carries is checked beside this: a statement proves its own authority.
pub fn may(call: Call, standing: &Standing) -> bool {
    let member = standing.role.is_some();
    let manages = standing.owner || standing.role == Some(Role::Admin);
    match call {
        Call::CreateNetwork | Call::EnrolGateway | Call::ListNetworks => standing.operator,
        Call::RefreshGateway | Call::WatchDomain => standing.gateway,
        Call::Activate => standing.owner,
        Call::FindHolder | Call::ListTokens | Call::RegisterToken => manages,
        Call::Request | Call::Resolve | Call::WatchNetwork => member,
        // Proven by the statement in the body: a chain, or (leaving, consent) the agent's own key.
        Call::Consent | Call::Join | Call::Leave | Call::PutRecord | Call::Revoke => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Call; 17] = [
        Call::Activate,
        Call::Consent,
        Call::CreateNetwork,
        Call::EnrolGateway,
        Call::FindHolder,
        Call::Join,
        Call::Leave,
        Call::ListNetworks,
        Call::ListTokens,
        Call::PutRecord,
        Call::RefreshGateway,
        Call::RegisterToken,
        Call::Request,
        Call::Resolve,
        Call::Revoke,
        Call::WatchDomain,
        Call::WatchNetwork,
    ];

    fn allowed(standing: &Standing) -> Vec<Call> {
        ALL.into_iter().filter(|c| may(*c, standing)).collect()
    }

    /// P-072: a stranger may only hand in what proves itself.
    #[test]
    fn a_stranger_may_only_hand_in_what_proves_itself() {
        let open = [
            Call::Consent,
            Call::Join,
            Call::Leave,
            Call::PutRecord,
            Call::Revoke,
        ];

        assert_eq!(allowed(&Standing::default()), open);
    }

    /// P-079: a member manages nothing, whatever its other rights.
    #[test]
    fn a_member_manages_nothing() {
        let member = Standing {
            role: Some(Role::Member),
            ..Standing::default()
        };
        let auditor = Standing {
            role: Some(Role::Auditor),
            ..Standing::default()
        };
        for call in [
            Call::Activate,
            Call::CreateNetwork,
            Call::EnrolGateway,
            Call::FindHolder,
            Call::ListNetworks,
            Call::ListTokens,
            Call::RegisterToken,
            Call::RefreshGateway,
            Call::WatchDomain,
        ] {
            assert!(!may(call, &member) && !may(call, &auditor), "{call:?}");
        }
    }

    /// an operator runs the domain and sees into no network.
    #[test]
    fn an_operator_is_no_member() {
        let operator = Standing {
            operator: true,
            ..Standing::default()
        };

        for call in [
            Call::FindHolder,
            Call::Resolve,
            Call::WatchNetwork,
            Call::ListTokens,
            Call::Activate,
        ] {
            assert!(!may(call, &operator), "{call:?}");
        }
    }
}
