package host_test

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/paddockvm/paddock/worker/host"
)

const meminfo = "MemTotal:       16384000 kB\nMemFree:         1000000 kB\nMemAvailable:    8192000 kB\n"

// at makes a host of files.
func at(t *testing.T, files map[string]string) host.Reader {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return host.Reader{Root: root}
}

func TestCapacity(t *testing.T) {
	all := float64(runtime.NumCPU())
	for _, c := range []struct {
		name  string
		files map[string]string
		want  host.Capacity
	}{
		{"no cgroup", nil, host.Capacity{CPUs: all, MemoryMiB: 16000}},
		{
			"version 2, held to half a processor and a gibibyte by the cgroup above",
			map[string]string{
				"proc/self/cgroup": "0::/paddock.slice/worker.service\n", "sys/fs/cgroup/paddock.slice/cpu.max": "50000 100000\n",
				"sys/fs/cgroup/paddock.slice/memory.max": "1073741824\n", "sys/fs/cgroup/paddock.slice/worker.service/memory.max": "max\n",
				"sys/fs/cgroup/paddock.slice/worker.service/cpu.max": "max 100000\n",
			},
			host.Capacity{CPUs: 0.5, MemoryMiB: 1024},
		},
		{
			"version 1",
			map[string]string{
				"proc/self/cgroup": "5:cpu,cpuacct:/a\n4:memory:/b\n", "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "25000\n",
				"sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000\n", "sys/fs/cgroup/memory/b/memory.limit_in_bytes": "2147483648\n",
			},
			host.Capacity{CPUs: 0.25, MemoryMiB: 2048},
		},
		{
			"version 1 without limits",
			map[string]string{
				"proc/self/cgroup": "5:cpu,cpuacct:/\n4:memory:/\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
				"sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
			},
			host.Capacity{CPUs: all, MemoryMiB: 16000},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			files := map[string]string{"proc/meminfo": meminfo}
			for k, v := range c.files {
				files[k] = v
			}
			got, err := at(t, files).Capacity()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestThisHost(t *testing.T) {
	c, err := host.Reader{}.Capacity()
	if err != nil || c.CPUs <= 0 || c.MemoryMiB < 64 {
		t.Errorf("%+v, %v", c, err)
	}
	available, err := host.Reader{}.AvailableMiB()
	if err != nil || available <= 0 {
		t.Errorf("%d MiB available, %v", available, err)
	}
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(host.Reader{})
	if _, err := r.Gather(); err != nil {
		t.Error(err)
	}
}

const (
	calm    = "some avg10=50.00 avg60=2.00 avg300=3.00 total=1500000\nfull avg10=1.00 avg60=0.00 avg300=0.00 total=250000\n"
	stalled = "some avg10=60.00 avg60=2.00 avg300=3.00 total=1500000\nfull avg10=5.00 avg60=0.00 avg300=0.00 total=250000\n"
)

func TestPressure(t *testing.T) {
	r := at(t, map[string]string{"proc/pressure/memory": calm, "proc/pressure/io": "what?\n"})
	got, err := r.Pressure("memory")
	if diff := cmp.Diff(host.Stall{Some: 0.5, Full: 0.01, SomeSeconds: 1.5, FullSeconds: 0.25}, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if _, err := r.Pressure("io"); err == nil {
		t.Error("nonsense was read")
	}
	if _, err := r.Pressure("cpu"); !errors.Is(err, host.ErrNoPressure) {
		t.Errorf("without PSI: %v", err)
	}
}

func TestShort(t *testing.T) {
	for _, c := range []struct {
		name  string
		files map[string]string
		least int
		want  bool
	}{
		{"enough", map[string]string{"proc/meminfo": meminfo, "proc/pressure/memory": calm}, 8000, false},
		{"too little", map[string]string{"proc/meminfo": meminfo, "proc/pressure/memory": calm}, 8001, true},
		{"stalled", map[string]string{"proc/meminfo": meminfo, "proc/pressure/memory": stalled}, 100, true},
		{"nothing known", nil, 100, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := (host.MemoryWatch{Reader: at(t, c.files), LeastMiB: c.least}).Short(); got != c.want {
				t.Errorf("short: %v", got)
			}
		})
	}
}
