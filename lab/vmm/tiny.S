/* The tiny guests' code, copied to guest address 0x10000 and independent of where it lies. */
#include "tiny.h"

/*
 * In 64-bit mode, with RDI = the vCPU's parameters (tiny.c).  TELLS is the instruction whose exit says that all registers
 * are loaded.
 */
	.macro	tiny64 name, tells:vararg
	.globl \name\()_start, \name\()_spin, \name\()_end
	.code64
\name\()_start:
	lgdt	0x100(%rdi)
	lidt	0x110(%rdi)
	mov	0x120(%rdi), %rax
	mov	%rax, %cr3
	mov	%rdi, %r15
	mov	0x38(%r15), %rsp
	mov	$0x10, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	mov	$0x18, %eax
	mov	%eax, %fs
	mov	$0x20, %eax
	mov	%eax, %gs
	mov	$0x28, %eax
	ltr	%ax
	mov	$0x38, %eax
	lldt	%ax
	push	$0x8
	lea	1f(%rip), %rax
	push	%rax
	lretq
1:
	/* MSRs: their number at 0x180, then index and value of each */
	lea	0x180(%r15), %rsi
	mov	(%rsi), %rbx
2:	add	$8, %rsi
	mov	(%rsi), %rcx
	add	$8, %rsi
	mov	(%rsi), %rax
	mov	%rax, %rdx
	shr	$32, %rdx
	wrmsr
	dec	%rbx
	jnz	2b
	mov	0x140(%r15), %rax
	mov	%rax, %dr0
	mov	0x148(%r15), %rax
	mov	%rax, %dr1
	mov	0x128(%r15), %rax
	mov	%rax, %cr4
	mov	0x130(%r15), %rax
	mov	%rax, %cr2
	mov	0x138(%r15), %rax
	push	%rax
	popfq
	/* nothing behind changes a flag */
	mov	%r15, %rdi
	mov	0x00(%rdi), %rax
	mov	0x08(%rdi), %rbx
	mov	0x10(%rdi), %rcx
	mov	0x18(%rdi), %rdx
	mov	0x20(%rdi), %rsi
	mov	0x30(%rdi), %rbp
	mov	0x38(%rdi), %rsp
	mov	0x40(%rdi), %r8
	mov	0x48(%rdi), %r9
	mov	0x50(%rdi), %r10
	mov	0x58(%rdi), %r11
	mov	0x60(%rdi), %r12
	mov	0x68(%rdi), %r13
	mov	0x70(%rdi), %r14
	mov	0x78(%rdi), %r15
	mov	0x28(%rdi), %rdi
	\tells
\name\()_spin:
3:	pause
	jmp	3b
\name\()_end:
	.endm

	.text
	tiny64	tiny64, out %al, $SYNC_PORT
	tiny64	tiny64_mmio, movabs %al, MMIO

/* In real mode, at 1000:0000. */
	.globl tiny16_start, tiny16_spin, tiny16_end
	.code16
tiny16_start:
	mov	$0x1234, %ax
	mov	$0x2345, %bx
	mov	$0x3456, %cx
	mov	$0x4567, %dx
	mov	$0x5678, %si
	mov	$0x6789, %di
	mov	$0x789a, %bp
	mov	$0x89ab, %sp
	out	%al, $SYNC_PORT
tiny16_spin:
4:	pause
	jmp	4b
tiny16_end:
	.code64
	.section .note.GNU-stack,"",@progbits
