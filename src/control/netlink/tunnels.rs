//! UDP tunnels that end in this network namespace. Reading them needs no privilege.

use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::link::{InfoData, InfoGeneve, InfoKind, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage};

use super::Netlink;
use crate::packet::tunnel::TunnelKind;

impl Netlink {
    /// Ports of tunnels that carry Ethernet frames, each once, the least first. `None` if they can't be read.
    pub async fn tunnels(&self) -> Option<Vec<(u16, TunnelKind)>> {
        let mut tunnels = Vec::new();
        for kind in [InfoKind::Vxlan, InfoKind::Geneve] {
            let mut request = self.handle.link().get();
            // The kernel passes over all others: a machine with containers has hundreds.
            request.message_mut().attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]));
            let mut listed = request.execute();
            while let Some(message) = listed.try_next().await.ok()? {
                tunnels.extend(tunnel(&message));
            }
        }
        tunnels.sort_unstable_by_key(|(port, _)| *port);
        tunnels.dedup();
        Some(tunnels)
    }
}

fn tunnel(message: &LinkMessage) -> Option<(u16, TunnelKind)> {
    let infos = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    })?;
    infos.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(attributes)) => vxlan_port(attributes).map(|port| (port, TunnelKind::Vxlan)),
        LinkInfo::Data(InfoData::Geneve(attributes)) => geneve_port(attributes).map(|port| (port, TunnelKind::Geneve)),
        _ => None,
    })
}

/// `None` for one that carries other than Ethernet frames.
fn vxlan_port(attributes: &[InfoVxlan]) -> Option<u16> {
    let carries_others = attributes.iter().any(|attribute| matches!(attribute, InfoVxlan::Gpe));
    let port = attributes.iter().find_map(|attribute| match attribute {
        InfoVxlan::Port(port) => Some(*port),
        _ => None,
    });
    port.filter(|_| !carries_others)
}

fn geneve_port(attributes: &[InfoGeneve]) -> Option<u16> {
    let carries_others = attributes.iter().any(|attribute| matches!(attribute, InfoGeneve::InnerProtoInherit));
    let port = attributes.iter().find_map(|attribute| match attribute {
        InfoGeneve::Port(port) => Some(*port),
        _ => None,
    });
    port.filter(|_| !carries_others)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(data: InfoData) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(data)]));
        message
    }

    #[test]
    fn a_tunnel_is_known_by_its_kind_and_port() {
        let vxlan = link(InfoData::Vxlan(vec![InfoVxlan::Id(7), InfoVxlan::Port(8472)]));
        assert_eq!(tunnel(&vxlan), Some((8472, TunnelKind::Vxlan)));
        let geneve = link(InfoData::Geneve(vec![InfoGeneve::CollectMetadata, InfoGeneve::Port(6081)]));
        assert_eq!(tunnel(&geneve), Some((6081, TunnelKind::Geneve)));
        assert_eq!(tunnel(&LinkMessage::default()), None);
    }

    #[test]
    fn a_tunnel_of_other_than_ethernet_frames_is_none() {
        let vxlan = link(InfoData::Vxlan(vec![InfoVxlan::Port(4790), InfoVxlan::Gpe]));
        assert_eq!(tunnel(&vxlan), None);
        let geneve = link(InfoData::Geneve(vec![InfoGeneve::Port(6081), InfoGeneve::InnerProtoInherit]));
        assert_eq!(tunnel(&geneve), None);
    }
}
