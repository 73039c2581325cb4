package qemu

import "github.com/paddockvm/paddock/vmm"

const (
	// vmmMemory is what QEMU has in memory beside the guest's: 85 MiB as measured under TCG when all 64 MiB for translated code were used,
	// 30 MiB without; and pages of its program's files, where no other QEMU has brought them in before.
	vmmMemory = 128 << 20
	// vmmThreads are QEMU's beside the processors': 64 at most that do I/O (thread-pool-max), its main loop, its RCU thread, and some that come and
	// go while a machine is saved or loaded. QEMU aborts where it cannot have one.
	vmmThreads = 96
)

// share is what a machine may use of its host, at the largest that it can become. QEMU's main loop and its threads for I/O work beside the
// processors: without time of their own they would take it from a guest that computes.
func share(b vmm.Boot, disk vmm.DiskLimits) vmm.Share {
	cpus := max(b.VCPUs, b.MaxVCPUs)
	return vmm.Share{
		CPUs: float64(cpus) + 0.5, MemoryBytes: int64(max(b.MemoryMiB, b.MaxMemoryMiB))<<20 + vmmMemory, PIDs: cpus + vmmThreads,
		DiskBytesPerSecond: disk.BytesPerSecond, // the VMM holds its guest to it; this holds the VMM
	}
}
