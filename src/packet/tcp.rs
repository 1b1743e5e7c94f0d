//! What stands where in a TCP header (RFC 9293 §3.1).

/// Length in bytes of a header without options.
pub const TCP_HEADER_LEN: usize = 20;

/// The acknowledgement number: four bytes from here.
pub const TCP_ACKNOWLEDGEMENT: usize = 8;
/// The byte whose upper four bits are the header's length in units of four bytes.
pub const TCP_DATA_OFFSET: usize = 12;
/// The byte of the flags.
pub const TCP_FLAGS: usize = 13;

/// The sender has no more to say.
pub const TCP_FIN: u8 = 0x01;
/// A connection is opened.
pub const TCP_SYN: u8 = 0x02;
/// There is no such connection, or no longer.
pub const TCP_RST: u8 = 0x04;
/// The receiver need not wait for more.
pub const TCP_PSH: u8 = 0x08;
/// The acknowledgement number counts.
pub const TCP_ACK: u8 = 0x10;
/// The urgent pointer counts.
pub const TCP_URG: u8 = 0x20;
/// A mark of congestion has arrived (RFC 3168).
pub const TCP_ECE: u8 = 0x40;
/// It was heeded.
pub const TCP_CWR: u8 = 0x80;

/// In the byte of the header's length: a bit of a counter of marks, with both before (RFC 9768).
pub const TCP_AE: u8 = 0x01;

/// Ends the options. It and the next have no length.
pub const TCP_OPTION_END: u8 = 0;
/// Fills up.
pub const TCP_OPTION_NONE: u8 = 1;
/// Time stamps (RFC 7323).
pub const TCP_OPTION_TIMESTAMPS: u8 = 8;
