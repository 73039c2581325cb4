package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/cloudhypervisor/api"
)

// bare is the least that can be done with the same template: no jail, no checks, everything by path.
func (l *lab) bare(ctx context.Context, r *benchReport, n int) error {
	dir := filepath.Join(l.dir, "bare"+strconv.Itoa(n))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	at := time.Now()
	if err := exec.Command("cp", "--sparse=always", l.template.Boot.Scratch, dir+"/scratch").Run(); err != nil {
		return err
	}
	if err := os.Chmod(dir+"/scratch", 0o600); err != nil {
		return err
	}
	if l.driver.Name() == "cloud-hypervisor" {
		return l.bareCloudHypervisor(ctx, r, dir, at)
	}
	return l.bareQEMU(ctx, r, dir, at)
}

func (l *lab) bareQEMU(ctx context.Context, r *benchReport, dir string, at time.Time) error {
	b := l.template.Boot
	accel, memory := l.caps.Accel, strconv.Itoa(b.MemoryMiB)+"M"
	if accel == "tcg" {
		accel = "tcg,thread=multi,tb-size=64"
	}
	cmd := exec.Command("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-S", "-incoming", "defer",
		"-accel", accel, "-cpu", l.caps.CPU, "-machine", l.caps.Machine+",memory-backend=ram,usb=off,vmport=off,suppress-vmdesc=on", "-smp", strconv.Itoa(b.VCPUs), "-m", memory,
		"-object", "memory-backend-file,id=ram,size="+memory+",share=off,mem-path="+l.template.Dir+"/memory",
		"-global", "apic-common.vapic=off", "-global", "migration.send-configuration=off", "-serial", "file:"+dir+"/console", "-qmp", "unix:"+dir+"/qmp,server=on,wait=off",
		"-device", "virtio-rng-pci", "-device", "pvpanic-pci", "-device", "virtio-serial-pci", // in the driver's order: it is in the template's state
		"-chardev", "socket,id=agent,server=on,wait=off,path="+dir+"/agent", "-device", "virtserialport,chardev=agent,name=org.paddock.agent.0",
		"-blockdev", "driver=file,node-name=root,read-only=on,locking=off,filename="+b.Root, "-device", "virtio-blk-pci,drive=root",
		"-blockdev", "driver=file,node-name=scratch,locking=off,filename="+dir+"/scratch", "-device", "virtio-blk-pci,drive=scratch")
	end, err := startBare(cmd)
	if err != nil {
		return err
	}
	defer end()
	conn, err := dialBare(dir + "/qmp")
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // the process is over
	q := &bareQMP{conn, bufio.NewReader(conn)}
	state, err := os.Open(l.template.Dir + "/state")
	if err != nil {
		return err
	}
	defer state.Close()
	if err := errors.Join(
		q.say(`{"execute":"qmp_capabilities"}`, `"return"`, nil),
		q.say(`{"execute":"migrate-set-capabilities","arguments":{"capabilities":[{"capability":"x-ignore-shared","state":true},{"capability":"events","state":true}]}}`, `"return"`, nil),
		q.say(`{"execute":"getfd","arguments":{"fdname":"state"}}`, `"return"`, unix.UnixRights(int(state.Fd()))),
	); err != nil {
		return err
	}
	r.add("bare prepare ms", time.Since(at))
	at = time.Now()
	if err := errors.Join(q.say(`{"execute":"migrate-incoming","arguments":{"uri":"fd:state"}}`, `"completed"`, nil), q.say(`{"execute":"cont"}`, `"return"`, nil)); err != nil {
		return err
	}
	r.add("bare restore ms", time.Since(at))
	guest, err := net.Dial("unix", dir+"/agent")
	if err != nil {
		return err
	}
	return told(ctx, guest, r, "bare ", at)
}

func startBare(cmd *exec.Cmd) (end func(), err error) {
	cmd.Stderr = os.Stderr
	return func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}, cmd.Start()
}

// bareQMP speaks QMP by lines.
type bareQMP struct {
	conn *net.UnixConn
	r    *bufio.Reader
}

// dialBare waits for a socket that a VMM makes.
func dialBare(path string) (*net.UnixConn, error) {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		c, err := net.Dial("unix", path)
		if err == nil {
			return c.(*net.UnixConn), nil
		}
		if time.Now().After(end) {
			return nil, err
		}
	}
}

func (q *bareQMP) say(line, until string, oob []byte) error {
	if _, _, err := q.conn.WriteMsgUnix([]byte(line+"\n"), oob, nil); err != nil {
		return err
	}
	for {
		got, err := q.r.ReadString('\n')
		if err != nil {
			return err
		}
		if strings.Contains(got, `"error"`) {
			return fmt.Errorf("%s: %s", line, got)
		}
		if strings.Contains(got, until) {
			return nil
		}
	}
}

// bareCloudHypervisor reads the template's configuration, changes what is each clone's own, and has it restored.
func (l *lab) bareCloudHypervisor(ctx context.Context, r *benchReport, dir string, at time.Time) error {
	ports, err := l.bareConfig(dir)
	if err != nil {
		return err
	}
	cmd := exec.Command(cmp.Or(os.Getenv("PADDOCK_CLOUD_HYPERVISOR"), "cloud-hypervisor"), "--api-socket", "path="+dir+"/api")
	end, err := startBare(cmd)
	if err != nil {
		return err
	}
	defer end()
	a := api.New(func(context.Context) (*net.UnixConn, error) { return dialBare(dir + "/api") })
	defer a.Close()
	if _, err := a.Ping(ctx); err != nil {
		return err
	}
	r.add("bare prepare ms", time.Since(at))
	at = time.Now()
	restore := api.Restore{Source: "file://" + dir, Resume: !strings.HasPrefix(l.caps.Version, "v51.")}
	if err := a.Restore(ctx, restore); err != nil {
		return err
	}
	if !restore.Resume {
		if err := a.Resume(ctx); err != nil {
			return err
		}
	}
	r.add("bare restore ms", time.Since(at))
	for range ports { // which the template's guest may still take for connections of its own
		guest, err := dialBare(dir + "/vsock")
		if err != nil {
			return err
		}
		_, err = io.WriteString(guest, "CONNECT 1\n")
		if err := errors.Join(err, guest.Close()); err != nil {
			return err
		}
	}
	guest, err := dialBare(dir + "/vsock")
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(guest, "CONNECT %d\n", vmm.GuestPort); err != nil {
		return errors.Join(err, guest.Close())
	}
	for b := make([]byte, 1); b[0] != '\n'; { // OK and a number; what follows is the guest's
		if _, err := guest.Read(b); err != nil {
			return errors.Join(fmt.Errorf("connect: %w", err), guest.Close())
		}
	}
	return told(ctx, guest, r, "bare ", at)
}

// bareConfig writes a clone's configuration and state to dir, and gives how many of the channel's ports the template has used.
func (l *lab) bareConfig(dir string) (ports int, err error) {
	var c map[string]any
	var manifest struct {
		Ports int `json:"ports"`
	}
	for name, into := range map[string]any{"config.json": &c, "cloud-hypervisor.json": &manifest} {
		b, err := os.ReadFile(filepath.Join(l.template.Dir, name))
		if err == nil {
			err = json.NewDecoder(bytes.NewReader(b)).Decode(into)
		}
		if err != nil {
			return 0, fmt.Errorf("%s: %w", name, err)
		}
	}
	object := func(v any) map[string]any { o, _ := v.(map[string]any); return o }
	first := func(v any, n int) map[string]any {
		if list, _ := v.([]any); n < len(list) {
			return object(list[n])
		}
		return nil
	}
	memory := object(c["memory"])
	zone, root, scratch, vsock, serial := first(memory["zones"], 0), first(c["disks"], 0), first(c["disks"], 1), object(c["vsock"]), object(c["serial"])
	if zone == nil || root == nil || scratch == nil || vsock == nil || serial == nil {
		return 0, errors.New("config.json is not that of a template")
	}
	memory["thp"], zone["shared"], zone["file"] = false, false, l.template.Dir+"/memory"
	root["path"], scratch["path"] = l.template.Boot.Root, dir+"/scratch"
	vsock["socket"], serial["file"] = dir+"/vsock", dir+"/console"
	c["landlock_enable"], c["payload"] = false, map[string]any{"kernel": "/dev/null"} // nothing is booted anew
	b, err := json.Marshal(c)
	if err == nil {
		err = os.WriteFile(dir+"/config.json", b, 0o600)
	}
	return manifest.Ports, errors.Join(err, os.Symlink(l.template.Dir+"/state.json", dir+"/state.json"))
}
