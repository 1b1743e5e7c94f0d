//! Which of a TUN's queues takes a packet: one for all packets of a flow, in both directions and from the first to the last.
//!
//! Left to itself the kernel has a flow leave by the queue that its packets came in by, which changes when the other side
//! has another number of workers, and after three seconds without one: packets of both queues then overtake each other.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use nix::errno::Errno;

/// Has the kernel choose by addresses, protocol and ports alone, for all queues of the TUN that `queue` belongs to. Needs
/// CAP_BPF, on most systems.
pub(super) fn steer_by_flow(queue: BorrowedFd<'_>) -> io::Result<()> {
    let program = load(&program())?;
    let descriptor = program.as_raw_fd();
    // SAFETY: the request reads one `int`, a descriptor that is open; the kernel keeps the program by itself.
    let result = unsafe { libc::ioctl(queue.as_raw_fd(), TUNSETSTEERINGEBPF, &raw const descriptor) };
    Errno::result(result).map(drop).map_err(io::Error::from)
}

/// `_IOR('T', 224, int)` of `linux/if_tun.h`.
const TUNSETSTEERINGEBPF: libc::Ioctl = 0x8004_54e0_u32 as libc::Ioctl;

/// `struct bpf_insn` of `linux/bpf.h`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Instruction {
    code: u8,
    /// Two registers, half a byte each.
    registers: u8,
    offset: i16,
    operand: i32,
}

/// The first members of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
struct LoadAttributes {
    program_type: u32,
    instructions_len: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_len: u32,
    log: u64,
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: libc::c_long = 5;
    const BPF_PROG_TYPE_SOCKET_FILTER: u32 = 1;
    let attributes = LoadAttributes {
        program_type: BPF_PROG_TYPE_SOCKET_FILTER,
        instructions_len: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"MIT OR Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_len: 0,
        log: 0,
    };
    // SAFETY: the kernel reads `attributes`, of the stated size, and the program and the string that it points to, all of
    // which outlive the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attributes, size_of::<LoadAttributes>()) };
    let descriptor = Errno::result(result).map_err(io::Error::from)?;
    let descriptor = libc::c_int::try_from(descriptor).expect("descriptors are of the type int");
    // SAFETY: the call has just opened it, so this is its only owner.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// A hash that is the same for both directions; the kernel takes it modulo the number of queues. Loads beyond the end of a
/// packet end the program with 0. Fragments, which lack ports, go by their addresses.
fn program() -> Vec<Instruction> {
    const RESULT: u8 = 0;
    const PACKET: u8 = 6;
    const HASH: u8 = 7;
    const PROTOCOL: u8 = 8;
    const TRANSPORT: u8 = 9;
    let addresses = |offsets: std::ops::RangeInclusive<i32>| {
        let words = offsets.step_by(4);
        words.flat_map(|offset| [load_word(offset), alu_register(XOR, HASH, RESULT)]).collect::<Vec<_>>()
    };
    let ports = [
        jump_if_equal(PROTOCOL, 6, 1),
        jump_unless_equal(PROTOCOL, 17, 6),
        load_word_at(TRANSPORT),
        alu_register(MOVE, PROTOCOL, RESULT),
        alu(SHIFT_RIGHT, PROTOCOL, 16),
        alu(AND, RESULT, 0xffff),
        alu_register(XOR, HASH, PROTOCOL),
        alu_register(XOR, HASH, RESULT),
    ];
    let mut v6 = addresses(8..=36);
    v6.extend([load_byte(6), alu_register(MOVE, PROTOCOL, RESULT), alu(MOVE, TRANSPORT, 40)]);
    let mut v4 = addresses(12..=16);
    v4.extend([load_byte(9), alu_register(MOVE, PROTOCOL, RESULT)]);
    v4.extend([load_byte(0), alu(AND, RESULT, 15), alu(SHIFT_LEFT, RESULT, 2), alu_register(MOVE, TRANSPORT, RESULT)]);
    v4.extend([load_half(6), alu(AND, RESULT, 0x3fff)]);
    v4.push(jump_unless_equal(RESULT, 0, 1 + v6.len() + ports.len()));
    v4.push(jump(v6.len()));

    let mut program = vec![copy_of_argument(PACKET), alu(MOVE, HASH, 0), load_byte(0), alu(SHIFT_RIGHT, RESULT, 4)];
    program.push(jump_if_equal(RESULT, 4, 1));
    program.push(jump(v4.len()));
    program.extend(v4);
    program.extend(v6);
    program.extend(ports);
    // Fibonacci hashing: the golden ratio's bits spread neighbouring ports.
    program.extend([alu(MULTIPLY, HASH, 0x9e37_79b1_u32 as i32), alu(SHIFT_RIGHT, HASH, 16)]);
    program.extend([alu_register(MOVE, RESULT, HASH), EXIT]);
    program
}

/// Operations of `alu` and `alu_register`, on 32 bits.
const MULTIPLY: u8 = 0x20;
const AND: u8 = 0x50;
const SHIFT_LEFT: u8 = 0x60;
const SHIFT_RIGHT: u8 = 0x70;
const XOR: u8 = 0xa0;
const MOVE: u8 = 0xb0;

const EXIT: Instruction = Instruction { code: 0x95, registers: 0, offset: 0, operand: 0 };

fn instruction(code: u8, destination: u8, source: u8, offset: usize, operand: i32) -> Instruction {
    let (low, high) = if cfg!(target_endian = "little") { (destination, source) } else { (source, destination) };
    Instruction { code, registers: low | high << 4, offset: offset as i16, operand }
}

fn alu(operation: u8, destination: u8, operand: i32) -> Instruction {
    instruction(operation | 0x04, destination, 0, 0, operand)
}

fn alu_register(operation: u8, destination: u8, source: u8) -> Instruction {
    instruction(operation | 0x0c, destination, source, 0, 0)
}

/// The loads take the packet from register 6 and leave what they find in register 0.
fn copy_of_argument(destination: u8) -> Instruction {
    instruction(0xbf, destination, 1, 0, 0)
}

fn load_word(offset: i32) -> Instruction {
    instruction(0x20, 0, 0, 0, offset)
}

fn load_half(offset: i32) -> Instruction {
    instruction(0x28, 0, 0, 0, offset)
}

fn load_byte(offset: i32) -> Instruction {
    instruction(0x30, 0, 0, 0, offset)
}

fn load_word_at(register: u8) -> Instruction {
    instruction(0x40, 0, register, 0, 0)
}

fn jump(over: usize) -> Instruction {
    instruction(0x05, 0, 0, over, 0)
}

fn jump_if_equal(register: u8, operand: i32, over: usize) -> Instruction {
    instruction(0x15, register, 0, over, operand)
}

fn jump_unless_equal(register: u8, operand: i32, over: usize) -> Instruction {
    instruction(0x55, register, 0, over, operand)
}
