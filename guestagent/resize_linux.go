package guestagent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/paddockvm/paddock/guestagent/wire"
)

// Where the kernel keeps what can be plugged in (kernel: Documentation/ABI/testing/sysfs-devices-system-cpu and -memory).
const (
	cpuDir    = "/sys/devices/system/cpu"
	memoryDir = "/sys/devices/system/memory"
)

// resizeWithin is how long the kernel may take to notice what was plugged in, or to free memory.
const resizeWithin = 10 * time.Second

// resize brings processors and memory into use, or gives them up, until what is in use is what was asked for, or time is up.
func (g *guest) resize(ctx context.Context, r *wire.Resize) (*wire.Size, error) {
	ctx, cancel := context.WithTimeout(ctx, resizeWithin)
	defer cancel()
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		cpus, err := useCPUs(r.VCPUs)
		if err != nil {
			return nil, fmt.Errorf("resize: %w", err)
		}
		plugged, err := g.usePlugged(r.PluggedMiB)
		if err != nil {
			return nil, fmt.Errorf("resize: %w", err)
		}
		done := (r.VCPUs == 0 || cpus == r.VCPUs) && plugged == r.PluggedMiB
		if !done { // the kernel is at it: it tells nobody when it has
			select {
			case <-time.After(wait):
				continue
			case <-ctx.Done():
			}
		}
		return &wire.Size{VCPUs: cpus, PluggedMiB: plugged}, nil
	}
}

// useCPUs brings the first n processors into use and no other, as far as the kernel lets it, and counts those in use.
func useCPUs(n int) (int, error) {
	ids, err := numbered(cpuDir, "cpu")
	if err != nil {
		return 0, err
	}
	used := 0
	for i, id := range ids {
		file := filepath.Join(cpuDir, "cpu"+strconv.Itoa(id), "online")
		state, err := os.ReadFile(file)
		if err != nil { // the first has none: it is always in use
			used++
			continue
		}
		on := strings.TrimSpace(string(state)) == "1"
		if want := i < n; n > 0 && want != on {
			value := "0"
			if want {
				value = "1"
			}
			if os.WriteFile(file, []byte(value), 0) == nil {
				on = want
			}
		}
		if on {
			used++
		}
	}
	return used, nil
}

// usePlugged brings as many MiB of the memory that was not there at the boot into use, as far as the kernel lets it, and counts those in use.
// It is movable memory, so that it can be given up again.
func (g *guest) usePlugged(mib int) (int, error) {
	b, err := os.ReadFile(filepath.Join(memoryDir, "block_size_bytes"))
	if err != nil {
		return 0, err
	}
	size, err := strconv.ParseInt(strings.TrimSpace(string(b)), 16, 64)
	if err != nil || size < 1<<20 {
		return 0, fmt.Errorf("memory in blocks of %q bytes", b)
	}
	block := int(size >> 20)
	ids, err := g.pluggedMemory()
	if err != nil {
		return 0, err
	}
	states := make([]string, len(ids))
	used := 0
	for i, id := range ids {
		b, _ := os.ReadFile(memoryState(id)) // it may have been pulled just now
		if states[i] = strings.TrimSpace(string(b)); states[i] == "online" {
			used += block
		}
	}
	for i, id := range ids {
		if states[i] == "offline" && used+block <= mib && os.WriteFile(memoryState(id), []byte("online_movable"), 0) == nil {
			used += block
		}
	}
	for i, id := range slices.Backward(ids) {
		if states[i] == "online" && used > mib && os.WriteFile(memoryState(id), []byte("offline"), 0) == nil {
			used -= block
		}
	}
	return used, nil
}

func memoryState(id int) string {
	return filepath.Join(memoryDir, "memory"+strconv.Itoa(id), "state")
}

// pluggedMemory gives the memory blocks that were not there at the boot.
func (g *guest) pluggedMemory() ([]int, error) {
	ids, err := numbered(memoryDir, "memory")
	return slices.DeleteFunc(ids, func(id int) bool { return slices.Contains(g.bootMemory, id) }), err
}

// numbered gives the numbers of a directory's entries that are called prefix and a number, in order.
func numbered(dir, prefix string) ([]int, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var ids []int
	for _, e := range entries {
		rest, ok := strings.CutPrefix(e.Name(), prefix)
		if id, err := strconv.Atoi(rest); ok && err == nil {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids, nil
}
