# The probe's guest (probe.go): 246 bytes that take a processor from its reset into long mode, let it work there, and say '+' on
# port 0xe9, or '-'. Assembled by: as --64 -o p.o probe_guest.asm && objcopy -O binary p.o probe_guest.bin
.code16
start:
  cli
  lgdtl %cs:(gdtr - start)
  mov %cr0, %eax
  or $1, %al
  mov %eax, %cr0
  ljmpl $8, $(0xF0000 + pm - start)
.code32
pm:
  mov $16, %eax
  mov %eax, %ds
  mov %eax, %es
  mov %eax, %ss
  mov $0x8000, %esp
  # one 2 MiB page, mapped one to one
  movl $0x2003, 0x1000
  movl $0x3003, 0x2000
  movl $0x83, 0x3000
  mov $0x1000, %eax
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
  ljmpl $24, $(0xF0000 + lm - start)
.code64
lm:
  # a million rounds that a processor runs in a millisecond and an interpreter of single instructions in seconds
  mov $1000000, %ecx
  mov $0x4000, %edi
  xor %eax, %eax
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
  out %al, $0xe9
2: hlt
  jmp 2b
.align 8
  # Accessed already: the table is in ROM, and a processor that wants to write that bit waits for ever.
gdt:
  .quad 0
  .quad 0x00cf9b000000ffff
  .quad 0x00cf93000000ffff
  .quad 0x00af9b000000ffff
gdtr:
  .word 31
  .long 0xF0000 + gdt - start
end:
