package qemu_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/qemu"
	"github.com/paddockvm/paddock/vmm/vmmtest"
)

// BenchmarkClone clones a template by the driver and, in turn, by hand: a bare QEMU that is spawned beforehand, given the state by
// descriptor, and asked, some times in each iteration. Figures are medians; ratio is the driver's restore to the first answer by the bare
// one's. The raw samples go to PADDOCK_TEST_OUT, where that is set.
func BenchmarkClone(b *testing.B) { benchmarkClone(b, "serial") }

// BenchmarkCloneVsock is the same with the guest's agent reached by vsock.
func BenchmarkCloneVsock(b *testing.B) {
	needVsock(b)
	benchmarkClone(b, "vsock")
}

func benchmarkClone(b *testing.B, channel string) {
	r := &registry{Launcher: vmm.Direct{}}
	d := newDriver(b, qemu.Config{Launcher: r, Channel: channel})
	template := vmmtest.Build(b, d, linux(b), vmmtest.TestGuest{})
	caps, err := d.Probe(within(b))
	if err != nil {
		b.Fatal(err)
	}
	bare := &bareQEMU{dir: b.TempDir(), template: template, caps: caps}
	samples := make(map[string][]float64)
	note := func(name string, start time.Time) time.Time {
		now := time.Now()
		samples[name] = append(samples[name], float64(now.Sub(start).Microseconds())/1000)
		return now
	}
	for b.Loop() {
		for range 5 { // a slow host's iteration is more than a benchmark's second, and one sample no median
			driverClone(b, d, r, template, note, samples)
			bare.clone(b, note, samples)
		}
	}
	b.ReportMetric(0, "ns/op")
	for name := range samples {
		b.ReportMetric(median(samples[name]), name)
	}
	b.ReportMetric(median(samples["ready-ms"])/median(samples["bare-ready-ms"]), "ratio")
	if out := os.Getenv("PADDOCK_TEST_OUT"); out != "" {
		j, err := json.MarshalIndent(samples, "", "  ")
		fatal(b, err)
		fatal(b, os.WriteFile(filepath.Join(out, "qemu-clone-"+channel+".json"), j, 0o644))
	}
}

func driverClone(b *testing.B, d *qemu.Driver, r *registry, t vmm.Template, note func(string, time.Time) time.Time, samples map[string][]float64) {
	ctx := b.Context()
	at := time.Now()
	p, err := d.Prepare(ctx, t, vmm.Attach{})
	fatal(b, err)
	at = note("prepare-ms", at)
	start := at
	m, err := p.Restore(ctx)
	fatal(b, err)
	at = note("restore-ms", at)
	s, err := vmmtest.TestGuest{}.Dial(ctx, m)
	fatal(b, err)
	note("answer-ms", at)
	at = note("ready-ms", start)
	_, err = s.Ask("get")
	fatal(b, err)
	at = note("ping1-ms", at)
	_, err = s.Ask("get")
	fatal(b, err)
	note("ping2-ms", at)
	noteMemory(b, samples, "", r.pid(m.ID()))
	s.Close()
	at = time.Now()
	fatal(b, m.Close())
	note("close-ms", at)
}

// bareQEMU is the least that can be done: no error is handled, nothing is checked, everything has a path.
type bareQEMU struct {
	dir      string
	template vmm.Template
	caps     vmm.Caps
	n        int
}

func (q *bareQEMU) clone(b *testing.B, note func(string, time.Time) time.Time, samples map[string][]float64) {
	q.n++
	dir := filepath.Join(q.dir, strconv.Itoa(q.n))
	fatal(b, os.Mkdir(dir, 0o700))
	at := time.Now()
	fatal(b, exec.Command("cp", "--sparse=always", q.template.Boot.Scratch, dir+"/scratch").Run())
	fatal(b, os.Chmod(dir+"/scratch", 0o600))
	accel := q.caps.Accel
	if accel == "tcg" {
		accel = "tcg,thread=multi,tb-size=64"
	}
	cmd := exec.Command("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-S", "-incoming", "defer",
		"-accel", accel, "-cpu", q.caps.CPU, "-machine", q.caps.Machine+",memory-backend=ram,usb=off,vmport=off,suppress-vmdesc=on", "-smp", "1", "-m", "256M",
		"-object", "memory-backend-file,id=ram,size=256M,share=off,mem-path="+q.template.Dir+"/memory",
		"-global", "apic-common.vapic=off", "-global", "migration.send-configuration=off", "-serial", "file:"+dir+"/console",
		"-qmp", "unix:"+dir+"/qmp,server=on,wait=off",
		"-device", "virtio-rng-pci", "-device", "pvpanic-pci")
	if q.caps.Channel == "vsock" {
		cmd.Args = append(cmd.Args, "-device", fmt.Sprintf("vhost-vsock-pci,guest-cid=%d", bareCID))
	} else {
		cmd.Args = append(cmd.Args, "-device", "virtio-serial-pci", "-chardev", "socket,id=agent,server=on,wait=off,path="+dir+"/agent",
			"-device", "virtserialport,chardev=agent,name=org.paddock.agent.0")
	}
	cmd.Args = append(cmd.Args,
		"-blockdev", "driver=file,node-name=root,read-only=on,locking=off,filename="+q.template.Boot.Root, "-device", "virtio-blk-pci,drive=root",
		"-blockdev", "driver=file,node-name=scratch,locking=off,filename="+dir+"/scratch", "-device", "virtio-blk-pci,drive=scratch")
	cmd.Stderr = os.Stderr
	fatal(b, cmd.Start())
	var conn net.Conn
	for err := error(unix.ENOENT); err != nil; time.Sleep(time.Millisecond) {
		conn, err = net.Dial("unix", dir+"/qmp")
	}
	r := bufio.NewReader(conn)
	say := func(line, until string, oob []byte) {
		_, _, err := conn.(*net.UnixConn).WriteMsgUnix([]byte(line+"\n"), oob, nil)
		fatal(b, err)
		for {
			got, err := r.ReadString('\n')
			fatal(b, err)
			if strings.Contains(got, `"error"`) {
				b.Fatal(line, got)
			}
			if strings.Contains(got, until) {
				return
			}
		}
	}
	say(`{"execute":"qmp_capabilities"}`, `"return"`, nil)
	say(`{"execute":"migrate-set-capabilities","arguments":{"capabilities":[{"capability":"x-ignore-shared","state":true},{"capability":"events","state":true}]}}`, `"return"`, nil)
	state, err := os.Open(q.template.Dir + "/state")
	fatal(b, err)
	say(`{"execute":"getfd","arguments":{"fdname":"state"}}`, `"return"`, unix.UnixRights(int(state.Fd())))
	fatal(b, state.Close())
	at = note("bare-prepare-ms", at)
	start := at
	say(`{"execute":"migrate-incoming","arguments":{"uri":"fd:state"}}`, `"completed"`, nil)
	say(`{"execute":"cont"}`, `"return"`, nil)
	at = note("bare-restore-ms", at)
	guest, err := q.dial(dir)
	fatal(b, err)
	_, err = io.WriteString(guest, "\nsync bare\n")
	fatal(b, err)
	_, err = bufio.NewReader(guest).ReadString('\n')
	fatal(b, err)
	note("bare-answer-ms", at)
	note("bare-ready-ms", start)
	noteMemory(b, samples, "bare-", cmd.Process.Pid)
	at = time.Now()
	fatal(b, cmd.Process.Kill())
	_ = cmd.Wait()
	note("bare-close-ms", at)
	guest.Close()
	conn.Close()
}

// bareCID is outside the drivers' range.
const bareCID = 4242

func (q *bareQEMU) dial(dir string) (net.Conn, error) {
	if q.caps.Channel != "vsock" {
		return net.Dial("unix", dir+"/agent")
	}
	return vsock.Dial(bareCID, vmm.GuestPort, nil)
}

// noteMemory takes the proportional and the private memory of a process, and of that the anonymous part.
func noteMemory(b *testing.B, samples map[string][]float64, prefix string, pid int) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	fatal(b, err)
	mib := func(field string) (n float64) {
		_, rest, _ := strings.Cut(string(text), "\n"+field+":")
		_, err := fmt.Sscan(rest, &n)
		fatal(b, err)
		return n / 1024
	}
	for name, v := range map[string]float64{"pss-MiB": mib("Pss"), "private-MiB": mib("Private_Clean") + mib("Private_Dirty"), "anon-MiB": mib("Anonymous")} {
		samples[prefix+name] = append(samples[prefix+name], v)
	}
}

// BenchmarkDensity restores 50 machines at once and has each answer; memory is of each, measured while all run.
func BenchmarkDensity(b *testing.B) {
	const machines = 50
	l := newLab(b, vmm.Direct{})
	samples := make(map[string][]float64)
	for b.Loop() {
		start := time.Now()
		running := make([]vmm.Machine, machines)
		var all sync.WaitGroup
		for i := range running {
			all.Go(func() {
				p, err := l.Driver.Prepare(b.Context(), l.Template, vmm.Attach{})
				if err != nil {
					b.Error(err)
					return
				}
				if running[i], err = p.Restore(b.Context()); err != nil {
					b.Error(err)
					return
				}
				if _, err := l.Get(b.Context(), running[i]); err != nil {
					b.Error(err)
				}
			})
		}
		all.Wait()
		if b.Failed() {
			b.FailNow()
		}
		samples["ready-ms"] = append(samples["ready-ms"], float64(time.Since(start).Milliseconds()))
		for _, m := range running {
			noteMemory(b, samples, "", l.pid(m.ID()))
		}
		start = time.Now()
		for _, m := range running {
			all.Go(func() {
				if err := m.Close(); err != nil {
					b.Error(err)
				}
			})
		}
		all.Wait()
		samples["close-ms"] = append(samples["close-ms"], float64(time.Since(start).Milliseconds()))
	}
	b.ReportMetric(0, "ns/op")
	for name := range samples {
		b.ReportMetric(median(samples[name]), name)
	}
}

func median(samples []float64) float64 {
	return slices.Sorted(slices.Values(samples))[len(samples)/2]
}

func fatal(b *testing.B, err error) {
	if err != nil {
		b.Helper()
		b.Fatal(err)
	}
}
