package qemu

import "github.com/paddockvm/paddock/vmm"

const (
	// vmmMemory is what QEMU has in memory beside the guest's: 85 MiB as measured under TCG when all 64 MiB for translated code were used,
	// 30 MiB without; and pages of its program's files, where no other QEMU has brought them in before.
	vmmMemory = 128 << 20
	// ioThreads is how many do I/O at most (thread-pool-max; 64 by default).
	ioThreads = 8
	// vmmThreads are QEMU's beside the processors': those that do I/O, its main loop, its RCU thread, and some that come and go while a machine
	// is saved or loaded. QEMU aborts where it cannot have one.
	vmmThreads = 96
)

// What QEMU may map beside the guest's memory. It aborts where it cannot, so this is more than it ever wants, and only bounds what goes
// beyond all reason: what it uses of it is bounded by vmmMemory.
const (
	// vmmSpace is its own: 450 MiB as measured.
	vmmSpace = 1 << 30
	// threadSpace is a thread's: its stack, and a malloc arena, which glibc maps at twice its 64 MiB to align it (malloc/arena.c).
	threadSpace = (8 + 2*64) << 20
	// queueSpace is a virtio queue's, of which each disk has one for a processor: a coroutine's stack of 1 MiB for each of 256 requests.
	queueSpace = 256 << 20
	disks      = 4 // at most, and what copies one
)

// addressSpace is what QEMU may map.
func addressSpace(b vmm.Boot) int64 {
	cpus := int64(max(b.VCPUs, b.MaxVCPUs))
	return most(b) + vmmSpace + (cpus+vmmThreads)*threadSpace + cpus*disks*queueSpace
}

// most is the memory that the machine can come to have, in bytes.
func most(b vmm.Boot) int64 { return int64(max(b.MemoryMiB, b.MaxMemoryMiB)) << 20 }

// share is what a machine may use of its host, at the largest that it can become. QEMU's main loop and its threads for I/O work beside the
// processors: without time of their own they would take it from a guest that computes.
func share(b vmm.Boot, disk vmm.DiskLimits) vmm.Share {
	cpus := max(b.VCPUs, b.MaxVCPUs)
	return vmm.Share{
		CPUs: float64(cpus) + 0.5, MemoryBytes: most(b) + vmmMemory, PIDs: cpus + vmmThreads,
		DiskBytesPerSecond: disk.BytesPerSecond, // the VMM holds its guest to it; this holds the VMM
		Weight:             weight(b.VCPUs, b.MemoryMiB),
	}
}

// weight is what a machine of that size counts for.
func weight(vcpus, memoryMiB int) vmm.Weight {
	return vmm.Weight{CPUs: float64(vcpus) + 0.5, MemoryBytes: int64(memoryMiB)<<20 + vmmMemory}
}
