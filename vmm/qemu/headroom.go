package qemu

import (
	"fmt"
	"strconv"

	"github.com/paddockvm/paddock/vmm"
)

const (
	// blockMiB is the least that Linux on x86 brings into use or gives up.
	blockMiB = 128
	// maxSlots is how many DIMMs a machine has at most: the kernel's vhost takes 64 regions of memory of one machine, of which it has some
	// already (max_mem_regions of drivers/vhost).
	maxSlots = 32
)

// dimmMiB is the size of a machine's DIMMs: all headroom in at most maxSlots of them.
func dimmMiB(b vmm.Boot) int {
	headroom := max(0, b.MaxMemoryMiB-b.MemoryMiB)
	blocks := (headroom + blockMiB*maxSlots - 1) / (blockMiB * maxSlots)
	return max(1, blocks) * blockMiB
}

// checkHeadroom refuses headroom that no machine can have.
func checkHeadroom(b vmm.Boot) error {
	switch d := dimmMiB(b); {
	case b.MaxVCPUs != 0 && b.MaxVCPUs < b.VCPUs:
		return fmt.Errorf("at most %d processors, and %d to begin with", b.MaxVCPUs, b.VCPUs)
	case b.MaxMemoryMiB != 0 && b.MaxMemoryMiB < b.MemoryMiB:
		return fmt.Errorf("at most %d MiB of memory, and %d to begin with", b.MaxMemoryMiB, b.MemoryMiB)
	case b.MaxMemoryMiB != 0 && (b.MaxMemoryMiB-b.MemoryMiB)%d != 0:
		return fmt.Errorf("memory from %d to %d MiB: it grows by %d MiB at a time", b.MemoryMiB, b.MaxMemoryMiB, d)
	}
	return nil
}

// smp and memorySize are what QEMU is told of the size and its headroom.
func smp(b vmm.Boot) string {
	if b.MaxVCPUs <= b.VCPUs {
		return strconv.Itoa(b.VCPUs)
	}
	return fmt.Sprintf("cpus=%d,maxcpus=%d", b.VCPUs, b.MaxVCPUs)
}

func memorySize(b vmm.Boot) string {
	if b.MaxMemoryMiB <= b.MemoryMiB {
		return strconv.Itoa(b.MemoryMiB) + "M"
	}
	return fmt.Sprintf("size=%dM,slots=%d,maxmem=%dM", b.MemoryMiB, (b.MaxMemoryMiB-b.MemoryMiB)/dimmMiB(b), b.MaxMemoryMiB)
}
