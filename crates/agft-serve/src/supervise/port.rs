//! The private port of an instance, and `{port}` in its entry.

use std::io;
use std::net::{Ipv4Addr, TcpListener};

use crate::spec::{Hook, Instance, Probe};

/// A port of 127.0.0.1 that nobody listens at now.
pub(super) fn free() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// The entry with the port in place of `{port}`: in arguments, values of variables, the probe, the metrics
/// page, and the arguments of hooks.
pub(super) fn fill_in(spec: &Instance, port: u16) -> Instance {
    let port_text = port.to_string();
    let fill = |text: &String| text.replace("{port}", &port_text);
    let mut filled = spec.clone();
    filled.command = spec.command.iter().map(fill).collect();
    filled.env = spec.env.iter().map(|(name, value)| (name.clone(), fill(value))).collect();
    filled.metrics_url = spec.metrics_url.as_ref().map(fill);
    if let Some(ready) = &mut filled.ready {
        match &mut ready.probe {
            Probe::Http(address) => *address = fill(address),
            Probe::Port(0) => ready.probe = Probe::Port(port),
            Probe::Port(_) => {}
        }
    }
    fill_in_hooks(&mut filled.hooks, &port_text);
    filled
}

fn fill_in_hooks(hooks: &mut [Hook], port: &str) {
    for hook in hooks {
        for argument in &mut hook.command {
            *argument = argument.replace("{port}", port);
        }
        fill_in_hooks(&mut hook.hooks, port);
    }
}
