//! Bytes: the wire messages, the frames inside them, and checked views of the IP packets inside those.

pub mod checksum;
pub mod frame;
pub mod headers;
pub mod ip;
pub mod message;
pub mod segment_size;
pub mod tcp;
pub mod traffic_class;
pub mod tunnel;
