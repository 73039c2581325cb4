# The probe's guest (probe.go): instructions that take a processor from where PVH starts it, in protected mode at 1 MiB, into long mode,
# let it work there, say '+' on the serial line, or '-', and power off by ACPI's register, which Cloud Hypervisor has at port 0x600.
# Assembled by: as --64 -o p.o probe_guest.asm && objcopy -O binary p.o probe_guest.bin
.code32
start:
  lgdtl 0x100000 + gdtr - start
  ljmpl $8, $(0x100000 + pm - start)
pm:
  mov $16, %eax
  mov %eax, %ds
  mov %eax, %es
  mov %eax, %ss
  mov $0x208000, %esp
  # two 2 MiB pages, mapped one to one
  movl $0x201003, 0x200000
  movl $0, 0x200004
  movl $0x202003, 0x201000
  movl $0, 0x201004
  movl $0x83, 0x202000
  movl $0, 0x202004
  movl $0x200083, 0x202008
  movl $0, 0x20200c
  mov $0x200000, %eax
  mov %eax, %cr3
  mov $0x620, %eax          # PAE, OSFXSR, OSXMMEXCPT
  mov %eax, %cr4
  mov $0xC0000080, %ecx     # EFER.LME
  rdmsr
  or $0x100, %eax
  wrmsr
  mov %cr0, %eax
  and $0xfffffffb, %eax     # no x87 emulation
  or $0x80000002, %eax      # paging, monitor
  mov %eax, %cr0
  ljmpl $24, $(0x100000 + lm - start)
.code64
lm:
  # a million rounds that a processor runs in a millisecond and an interpreter of single instructions in seconds
  mov $1000000, %ecx
  mov $0x204000, %edi
  xor %eax, %eax
  mov %rax, (%rdi)
  mov %rax, 0x10(%rdi)
  mov %rax, 0x18(%rdi)
1: add %rcx, (%rdi)
  add (%rdi), %rax
  dec %ecx
  jnz 1b
  # what kernels use and half-working accelerators stumble over
  xor %eax, %eax
  xor %edx, %edx
  mov $1, %ebx
  xor %ecx, %ecx
  lock cmpxchg16b 0x10(%rdi)
  jnz fail
  movdqa 0x10(%rdi), %xmm0
  movdqa %xmm0, 0x20(%rdi)
  cmpq $1, 0x20(%rdi)
  jne fail
  fxsave 0x1000(%rdi)
  fxrstor 0x1000(%rdi)
  mov $'+', %al
  jmp say
fail:
  mov $'-', %al
say:
  mov $0x3f8, %edx
  out %al, %dx
  mov $0x600, %edx
  mov $0x34, %al            # sleep type 5, and the bit that says now
  out %al, %dx
2: hlt
  jmp 2b
.align 8
gdt:
  .quad 0
  .quad 0x00cf9b000000ffff
  .quad 0x00cf93000000ffff
  .quad 0x00af9b000000ffff
gdtr:
  .word 31
  .long 0x100000 + gdt - start
