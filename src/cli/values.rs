//! What may be typed after an option, and what it means.

use std::{str::FromStr, time::Duration};

use nix::unistd::User;

use crate::statement::Protocol;

/// Longest time an option takes; ten years.
const MAX_DURATION: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Parses `90s`, `30m`, `1h`, `7d` or `2w`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 7 * 86_400,
        "" => {
            return Err(format!(
                "no unit (write {text}s, {text}m, {text}h or {text}d)"
            ));
        }
        unit => return Err(format!("`{unit}` is not a unit (s, m, h, d or w)")),
    };
    let number = digits
        .parse::<u64>()
        .map_err(|_| "not a whole number and a unit, as 90s, 30m, 1h or 7d".to_owned())?;
    let value = Duration::from_secs(number.saturating_mul(unit));
    if value.is_zero() {
        return Err("must be more than nothing".to_owned());
    }
    if value > MAX_DURATION {
        return Err("must be at most ten years".to_owned());
    }
    Ok(value)
}

/// Parses what stands between probes: as [`duration`], or `200ms`; at least 10 ms.
pub(super) fn pause(text: &str) -> Result<Duration, String> {
    let Some(number) = text.strip_suffix("ms") else {
        return duration(text).map_err(|error| error.replace("(s, m,", "(ms, s, m,"));
    };
    let number = number.parse::<u64>();
    let number = number.map_err(|_| "not a whole number and a unit, as 200ms or 1s".to_owned())?;
    if number < 10 {
        return Err("must be at least 10ms".to_owned());
    }
    Ok(Duration::from_millis(number).min(MAX_DURATION))
}

/// Reads a user's name or number.
pub(super) fn user(text: &str) -> Result<u32, String> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    match User::from_name(text) {
        Ok(Some(user)) => Ok(user.uid.as_raw()),
        Ok(None) => Err(format!("no user {text} on this host")),
        Err(error) => Err(format!("cannot look up the user: {error}")),
    }
}

/// A TCP port as `tcp/8000`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct TcpPort(pub(super) u16);

impl FromStr for TcpPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = text.strip_prefix("tcp/").and_then(|p| p.parse().ok());
        match port {
            Some(port) if port > 0 => Ok(Self(port)),
            Some(_) | None => Err(format!("expected {}/PORT, as tcp/8000", Protocol::Tcp)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_may_be_milliseconds() {
        assert_eq!(pause("200ms"), Ok(Duration::from_millis(200)));
        assert_eq!(pause("2s"), Ok(Duration::from_secs(2)));
        for text in ["9ms", "ms", "-5ms", "1.5ms", "0s", "5"] {
            assert!(pause(text).is_err(), "{text}");
        }
        let said = pause("1y").unwrap_err();
        assert_eq!(said, "`y` is not a unit (ms, s, m, h, d or w)");
    }

    #[test]
    fn a_duration_is_a_number_with_a_unit() {
        for (text, secs) in [
            ("90s", 90),
            ("30m", 1800),
            ("1h", 3600),
            ("90d", 7_776_000),
            ("2w", 1_209_600),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_secs(secs)), "{text}");
        }
        assert_eq!(
            duration("90").unwrap_err(),
            "no unit (write 90s, 90m, 90h or 90d)"
        );
        for text in [
            "",
            "h",
            "1.5h",
            "-1h",
            "1y",
            "0s",
            "1h30m",
            "99999999999999999999d",
            "4000d",
            "1é",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_port_names_its_protocol() {
        assert_eq!("tcp/8000".parse(), Ok(TcpPort(8000)));
        for text in ["8000", "tcp/0", "tcp/", "udp/53", "tcp/65536"] {
            assert!(text.parse::<TcpPort>().is_err(), "{text}");
        }
    }
}
