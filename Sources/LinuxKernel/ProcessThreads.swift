import Memory
import X86

/// A thread of a process: a `task_struct`.
public struct ProcessThread: Sendable {
  /// The thread's number on the host, whatever it is in the process's own namespace.
  public let id: Int32
  /// `task_struct.comm`. The process chose it: it may hold anything.
  public let name: String
  /// The host processor that the thread was running on; nil if it was waiting.
  public let processor: Int?
  /// Those with which the thread entered the kernel last, as the kernel keeps them on the thread's
  /// stack: current unless the thread was in user mode when the host was stopped. Nil if they are
  /// not at hand.
  public internal(set) var registers: UserRegisters?
  /// Why not.
  public let registersFailure: KernelError?
  /// Masks of signals: bit 0 is signal 1.
  public let pendingSignals: UInt64
  public let blockedSignals: UInt64
  /// In nanoseconds: in user mode and in the kernel.
  public let times: [UInt64]

  /// The same thread with registers that are known better.
  public func with(_ registers: UserRegisters) -> ProcessThread {
    var copy = self
    copy.registers = registers
    return copy
  }
}

extension LinuxKernel {
  /// The kernel's own bound is 4 million tasks of the whole machine; no process comes near it.
  private static let threadLimit = 1 << 16

  /// The tasks of the thread group of `leader`, the leader first: linked from `signal_struct` since
  /// 3.14 (0c740d0afc3b).
  func threads(
    of leader: KernelObject
  ) throws(KernelError) -> (threads: [ProcessThread], failures: [KernelError]) {
    let stack = try UserRegisterFrame(self)
    var threads: [ProcessThread] = []
    var failures: [KernelError] = []
    let tasks = try leader["signal"].required()["thread_head"]
      .listElements(of: leader.type, link: "thread_node", limit: Self.threadLimit)
    for task in tasks.filter({ $0.address == leader.address })
      + tasks.filter({ $0.address != leader.address })
    {
      do throws(KernelError) {
        if let thread = try thread(task, stack) { threads.append(thread) }
      } catch {
        if failures.count < 16 { failures.append(error) }
      }
    }
    return (threads, failures)
  }

  /// Nil for a thread that the kernel runs for the process (vhost since 6.4, io_uring): it never was
  /// in user mode.
  private func thread(
    _ task: KernelObject, _ stack: UserRegisterFrame
  ) throws(KernelError) -> ProcessThread? {
    let registers: Result<UserRegisters, KernelError>
    do throws(KernelError) {
      let values = try stack.registers(of: task)
      if values[.rip] == 0, values[.rsp] == 0 { return nil }
      registers = .success(values)
    } catch {
      registers = .failure(error)
    }
    var failure: KernelError?
    if case .failure(let error) = registers { failure = error }
    return ProcessThread(
      id: Int32(truncatingIfNeeded: try task["pid"].signed()), name: try task["comm"].text(),
      processor: try processor(of: task), registers: try? registers.get(),
      registersFailure: failure,
      pendingSignals: (try? task["pending.signal.sig"].element(0).unsigned()) ?? 0,
      blockedSignals: (try? task["blocked.sig"].element(0).unsigned()) ?? 0,
      times: (try? [task["utime"].unsigned(), task["stime"].unsigned()]) ?? [])
  }

  /// `task_struct.cpu` was moved into `thread_info` in 5.16 (bcf9033e5449). A machine of one
  /// processor has neither `on_cpu` nor a number.
  private func processor(of task: KernelObject) throws(KernelError) -> Int? {
    guard let isRunning = task.memberIfPresent("on_cpu") else { return nil }
    guard try isRunning.isTrue() else { return nil }
    if let number = task.memberIfPresent("cpu") { return Int(clamping: try number.unsigned()) }
    return Int(clamping: try task["thread_info.cpu"].unsigned())
  }
}

/// Where the kernel saves the registers of user mode when it is entered: a `pt_regs` at the top of
/// the thread's kernel stack (`task_pt_regs`, arch/x86/include/asm/processor.h).
private struct UserRegisterFrame {
  private let type: BTFType
  /// From the start of a stack.
  private let offset: UInt64

  init(_ kernel: LinuxKernel) throws(KernelError) {
    type = try kernel.structure("pt_regs")
    let stack = try Self.stackSize(kernel)
    guard let size = type.size,
      // With FRED (since 6.9), the processor pushes more, above `pt_regs`.
      let top = kernel.types.structure(named: "fred_frame").map({ $0.size }) ?? size,
      size <= top, top < stack
    else { throw .noType("pt_regs") }
    offset = stack - top
  }

  /// THREAD_SIZE: what the kernel's linker script sets aside for the stack of its first task
  /// (include/asm-generic/vmlinux.lds.h), since 6.10 under the first of these names. No type tells it.
  private static func stackSize(_ kernel: LinuxKernel) throws(KernelError) -> UInt64 {
    for what in ["stack", "task"] {
      guard let start = kernel.symbol("__start_init_\(what)"),
        let end = kernel.symbol("__end_init_\(what)")
      else { continue }
      let size = end.distance(from: start)
      guard size.isMultiple(of: pageSize), (1...64).contains(size >> pageShift) else { continue }
      return size
    }
    throw .noSymbol("__end_init_task", module: nil)
  }

  func registers(of task: KernelObject) throws(KernelError) -> UserRegisters {
    let stack = VirtualAddress(try task["stack"].unsigned())
    guard stack.rawValue != 0 else {
      throw .unexpectedKind(type: "task_struct.stack", needed: "there: the thread has ended")
    }
    let frame = KernelObject(in: task.memory, at: stack + offset, type: type)
    var registers = UserRegisters()
    for (register, member) in Self.members {
      registers[register] = try frame[member].unsigned()
    }
    // What the kernel finds there on its own stacks would be anything.
    guard registers[.cs] & 3 == 3 || registers[.rip] == 0 else {
      throw .unexpectedKind(type: "pt_regs", needed: "of user mode: cs is \(registers[.cs])")
    }
    let thread = try task["thread"]
    registers[.fsBase] = try thread.member("fsbase", "fs").unsigned()
    registers[.gsBase] = try thread.member("gsbase", "gs").unsigned()
    for (register, member) in Self.selectors {
      registers[register] = try thread[member].unsigned()
    }
    return registers
  }

  private static let members: [(UserRegister, String)] = [
    (.r15, "r15"), (.r14, "r14"), (.r13, "r13"), (.r12, "r12"), (.rbp, "bp"), (.rbx, "bx"),
    (.r11, "r11"), (.r10, "r10"), (.r9, "r9"), (.r8, "r8"), (.rax, "ax"), (.rcx, "cx"),
    (.rdx, "dx"), (.rsi, "si"), (.rdi, "di"), (.originalRAX, "orig_ax"), (.rip, "ip"),
    (.cs, "cs"), (.rflags, "flags"), (.rsp, "sp"), (.ss, "ss"),
  ]

  private static let selectors: [(UserRegister, String)] = [
    (.ds, "ds"), (.es, "es"), (.fs, "fsindex"), (.gs, "gsindex"),
  ]
}
