package cloudhypervisor_test

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// fakeVMM answers the API as v51 to v53 do (vmm/src/lib.rs and vmm/src/api/http of Cloud Hypervisor's sources).
type fakeVMM struct {
	l     *fakeLauncher
	files map[int]*os.File // by the numbers that the VMM has them under
	die   func(error)

	listener *net.UnixListener
	all      sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	conns   map[io.Closer]bool
	state   string // "" where there is no machine
	config  map[string]any
	guest   *fakeGuest
	memory  []byte      // the guest's, mapped
	vcpus   int         // since the last resize; 0: there was none
	leaving int         // of them, until the guest has let go
	asked   int         // since they began to leave
	keeps   bool        // the guest does not let go
	offered int64       // bytes of memory beyond the zone's that the guest was offered
	taken   int64       // of them
	seen    bool        // what is offered was told once since
	hoards  bool        // the guest gives none back
	opened  []io.Closer // what ends with the machine
}

func (v *fakeVMM) closeFiles() {
	for _, f := range v.files {
		_ = f.Close()
	}
}

func (v *fakeVMM) serve() error {
	l, err := net.FileListener(v.files[4])
	if err != nil {
		return err
	}
	v.listener, v.conns = l.(*net.UnixListener), map[io.Closer]bool{}
	v.listener.SetUnlinkOnClose(false)
	v.all.Go(func() {
		v.accept(v.listener, func(c *net.UnixConn) func() { // one after the other: what was asked and given up goes before what is asked then
			v.answerAll(c)
			return nil
		})
	})
	v.event("vmm", "starting")
	return nil
}

// accept hands each connection to f, and closes it after what f gives has run.
func (v *fakeVMM) accept(l *net.UnixListener, f func(*net.UnixConn) func()) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return
		}
		if !v.hold(c) {
			return
		}
		run := f(c)
		v.all.Go(func() {
			if run != nil {
				run()
			}
			_ = c.Close()
		})
	}
}

// hold has c closed at the end of the VMM; false where that was already.
func (v *fakeVMM) hold(c io.Closer) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.held(c)
}

// held is hold for who has the lock.
func (v *fakeVMM) held(c io.Closer) bool {
	if v.closed {
		_ = c.Close()
		return false
	}
	v.conns[c] = true
	return true
}

// stop ends everything.
func (v *fakeVMM) stop() {
	v.mu.Lock()
	v.closed = true
	conns := v.conns
	v.mu.Unlock()
	_ = v.listener.Close()
	for c := range conns {
		_ = c.Close()
	}
	v.all.Wait()
	if v.memory != nil {
		_ = unix.Munmap(v.memory)
	}
	v.closeFiles()
}

func (v *fakeVMM) event(source, name string) {
	b, _ := json.MarshalIndent(map[string]any{
		"timestamp": map[string]int{"secs": 1, "nanos": 2}, "source": source, "event": name, "properties": nil,
	}, "", "  ")
	_, _ = v.files[5].Write(b)
}

// fdConn reads a connection and keeps the descriptors that come with the bytes.
type fdConn struct {
	*net.UnixConn
	fds []int
}

func (c *fdConn) Read(b []byte) (int, error) {
	oob := make([]byte, 1024)
	n, oobn, _, _, err := c.ReadMsgUnix(b, oob)
	if err != nil {
		return 0, err
	}
	if messages, parseErr := unix.ParseSocketControlMessage(oob[:oobn]); parseErr == nil {
		for _, m := range messages {
			if fds, err := unix.ParseUnixRights(&m); err == nil {
				c.fds = append(c.fds, fds...)
			}
		}
	}
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (v *fakeVMM) answerAll(conn *net.UnixConn) {
	c := &fdConn{UnixConn: conn}
	for r := bufio.NewReaderSize(c, 4<<10); ; {
		q, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		body, err := io.ReadAll(q.Body)
		if err != nil {
			return
		}
		fds := c.fds
		c.fds = nil
		v.answer(conn, q, body, len(fds))
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}
}

// refused is an answer that is no success.
type refused struct {
	status int
	causes []string
}

func (r *refused) Error() string { return fmt.Sprint(r.status, r.causes) }

// internal is the commonest: what could not be done, and why.
func internal(causes ...string) error {
	return &refused{500, append([]string{"Error from API"}, causes...)}
}

func (v *fakeVMM) answer(conn *net.UnixConn, q *http.Request, body []byte, fds int) {
	path := strings.TrimPrefix(q.URL.Path, "/api/v1/")
	if !v.l.lax {
		v.l.schema.hold(v.l.t, q.Method, path, body)
	}
	f := v.l.struck(path)
	switch f {
	case killBefore:
		v.die(errKilled)
		return
	case silent:
		return // whoever waits has to give up by himself
	case unheard:
		_, _ = v.handle(q.Method, path, body, fds)
		return
	case garbage:
		_, _ = io.WriteString(conn, "\x00\x01 this is not HTTP\r\n\r\n")
		return
	case endless:
		_, _ = io.WriteString(conn, "HTTP/1.1 200 \r\nContent-Length: 99999999999\r\n\r\n")
		for {
			if _, err := conn.Write(bytes.Repeat([]byte("x"), 64<<10)); err != nil {
				return
			}
		}
	case hangUp:
		_, _ = io.WriteString(conn, "HTTP/1.1 200 \r\nContent-Length: 100\r\n\r\n{\"build_v")
		_ = conn.Close()
		return
	case halfway:
		if path == "vm.pause" {
			v.mu.Lock()
			v.guest.freeze(true)
			v.mu.Unlock()
		}
	case badEvents:
		_, _ = v.files[5].WriteString(`{"source": 7} ]]] {"source":"guest","event":"panic"`)
		_, _ = v.files[5].Write(bytes.Repeat([]byte("x"), 32<<10))
	}
	var out any
	err := error(&refused{500, []string{"Error from API", "sabotage"}})
	if f != refuse && f != refuseAll && f != halfway {
		out, err = v.handle(q.Method, path, body, fds)
	}
	reply(conn, out, err)
	if f == killAfter {
		v.die(errKilled)
	}
}

func reply(w io.Writer, out any, err error) {
	status, text := 204, ""
	if r, is := errors.AsType[*refused](err); is {
		b, _ := json.Marshal(r.causes)
		status, text = r.status, string(b)
	} else if out != nil {
		b, _ := json.Marshal(out)
		status, text = 200, string(b)
	}
	length := ""
	if text != "" {
		length = fmt.Sprintf("Content-Length: %d\r\n", len(text))
	}
	_, _ = fmt.Fprintf(w, "HTTP/1.1 %d \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\nContent-Type: application/json\r\n%s\r\n%s", status, length, text)
}

func (v *fakeVMM) handle(method, path string, body []byte, fds int) (any, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch method + " " + path {
	case "GET vmm.ping":
		return map[string]any{"build_version": v.l.version, "version": strings.TrimPrefix(v.l.version, "v"), "pid": 1, "features": []string{"kvm"}}, nil
	case "GET vm.info":
		return v.info()
	case "GET vm.counters":
		return v.counters()
	case "PUT vm.create":
		return nil, v.create(body)
	case "PUT vm.boot":
		return nil, v.boot()
	case "PUT vm.pause":
		return nil, v.become("Paused", "Running", "The VM could not be paused", "Cannot pause VM", "Failed to pause migratable component")
	case "PUT vm.resume":
		return nil, v.become("Running", "Paused", "The VM could not resume", "Cannot resume VM", "Failed to resume migratable component")
	case "PUT vm.shutdown":
		return nil, v.shutdown()
	case "PUT vm.delete":
		return nil, v.delete()
	case "PUT vm.reboot":
		return nil, v.reboot()
	case "PUT vm.power-button":
		return nil, v.runs("Error triggering power button") // nobody in the guest listens, as in the real one's
	case "PUT vm.snapshot":
		return nil, v.snapshot(body)
	case "PUT vm.restore":
		return nil, v.restore(body, fds)
	case "PUT vm.add-net", "PUT vm.add-disk", "PUT vm.add-vsock", "PUT vm.add-device":
		return v.add(strings.TrimPrefix(path, "vm.add-"), body, fds)
	case "PUT vm.remove-device":
		return nil, v.remove(body)
	case "PUT vm.resize":
		return nil, v.resize(body)
	case "PUT vm.resize-zone":
		return nil, v.resizeZone(body)
	case "PUT vm.resize-disk":
		return nil, v.resizeDisk(body)
	case "PUT vmm.shutdown":
		v.die(nil)
		return nil, nil
	}
	return nil, &refused{404, []string{"Not Found"}}
}

// release is the fake's major version.
func (v *fakeVMM) release() (n int) {
	_, _ = fmt.Sscanf(v.l.version, "v%d.", &n)
	return n
}

// exists refuses what wants a machine that was created.
func (v *fakeVMM) exists(what string) error {
	if v.config == nil {
		return v.missing(what, "VM is not created")
	}
	return nil
}

// missing is the answer where there is no machine for what was asked.
func (v *fakeVMM) missing(what, why string) error {
	status := 500
	if v.release() >= 53 {
		status = 404
	}
	return &refused{status, []string{"Error from API", what, why}}
}

// runs refuses what wants one that was booted; whether there is another does not matter.
func (v *fakeVMM) runs(what string) error {
	if !v.booted() {
		return internal(what, "VM is not running")
	}
	return nil
}

func (v *fakeVMM) booted() bool { return v.state == "Running" || v.state == "Paused" }

func (v *fakeVMM) info() (any, error) {
	if err := v.exists("The VM info is not available"); err != nil {
		return nil, err
	}
	return map[string]any{"config": v.config, "state": v.state, "memory_actual_size": v.has()}, nil
}

func (v *fakeVMM) become(state, from, what, cannot, component string) error {
	if err := v.runs(what); err != nil {
		return err
	}
	if v.state != from {
		return internal(what, cannot, component, fmt.Sprintf("Invalid transition: InvalidStateTransition(%s, %s)", v.state, state))
	}
	v.state = state
	v.guest.freeze(state == "Paused")
	v.event("vm", strings.ToLower(state))
	return nil
}

func (v *fakeVMM) create(body []byte) error {
	if v.config != nil {
		return internal("The VM could not be created", "VM is already created")
	}
	var c map[string]any
	if err := json.Unmarshal(body, &c); err != nil || c["payload"] == nil {
		return &refused{400, []string{"Failed to deserialize JSON", "missing field `payload`"}}
	}
	if serial, _ := c["serial"].(map[string]any); serial != nil && !slices.Contains([]any{"Off", "Pty", "Tty", "File", "Socket", "Null"}, serial["mode"]) {
		return &refused{400, []string{"Failed to deserialize JSON", "unknown variant"}}
	}
	v.config, v.state = c, "Created"
	return nil
}

// boot opens what a machine is made of.
func (v *fakeVMM) boot() error {
	if v.booted() {
		return internal("The VM could not boot", "VM is already created")
	}
	if v.config == nil {
		return v.missing("The VM could not boot", "VM config is missing")
	}
	v.event("vm", "booting")
	if err := v.start(); err != nil {
		return internal("The VM could not boot", err.Error())
	}
	v.event("vm", "booted")
	if v.config["vsock"] == nil { // the probe's guest
		v.guest.print("+")
		v.event("vm", "shutdown")
		v.die(nil)
	}
	return nil
}

// start is what boot and reboot have in common: the guest knows nothing of what was before.
func (v *fakeVMM) start() error {
	if err := v.open(); err != nil {
		return err
	}
	if v.memory != nil {
		clear(v.memory[4096 : 3*4096])
	}
	payload, _ := v.config["payload"].(map[string]any)
	kernel, err := v.own(fmt.Sprint(payload["kernel"]))
	if err != nil {
		return err
	}
	f, err := os.Open(kernel)
	if err != nil {
		return fmt.Errorf("kernel file: %w", err)
	}
	v.state = "Running"
	return f.Close()
}

// open opens memory, disks, the serial line and the vsock's socket as they are configured.
func (v *fakeVMM) open() error {
	memory, _ := v.config["memory"].(map[string]any)
	zones, _ := memory["zones"].([]any)
	v.offered, v.taken = 0, 0
	for _, z := range zones {
		zone := z.(map[string]any)
		if err := growable(memory, zone); err != nil {
			return err
		}
		path, err := v.own(fmt.Sprint(zone["file"]))
		if err != nil {
			return err
		}
		flag, prot, mode := os.O_RDONLY, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE
		if zone["shared"] == true {
			flag, mode = os.O_RDWR, unix.MAP_SHARED
		}
		if v.memory, err = mapMemory(path, flag, prot, mode, int(zone["size"].(float64))); err != nil {
			return fmt.Errorf("memory: %w", err)
		}
	}
	disks, _ := v.config["disks"].([]any)
	var opened []*fakeDisk
	for _, d := range disks {
		disk, err := v.openDisk(d.(map[string]any))
		if err != nil {
			return err
		}
		opened = append(opened, disk)
	}
	serial, _ := v.config["serial"].(map[string]any)
	path, err := v.own(fmt.Sprint(serial["file"]))
	if err != nil {
		return err
	}
	console, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	v.guest = &fakeGuest{v: v, console: console, conns: map[uint32]*net.UnixConn{}, disks: opened}
	v.opened = []io.Closer{console}
	if !v.held(console) {
		return errKilled
	}
	vsock, is := v.config["vsock"].(map[string]any)
	if !is {
		return nil
	}
	if path, err = v.own(fmt.Sprint(vsock["socket"])); err != nil {
		return err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	if !v.held(l) {
		return errKilled
	}
	v.opened = append(v.opened, l)
	g := v.guest
	v.all.Go(func() { v.mux(l, g) })
	return nil
}

// mux joins the host's connections with the guest's, in the words of hybrid vsock, and gives each the next port.
func (v *fakeVMM) mux(l *net.UnixListener, g *fakeGuest) {
	port := uint32(1<<30 - 1)
	v.accept(l, func(c *net.UnixConn) func() {
		line := make([]byte, 0, 32)
		_ = c.SetReadDeadline(time.Now().Add(time.Minute))
		for b := make([]byte, 1); len(line) < cap(line) && !bytes.HasSuffix(line, []byte("\n")); line = append(line, b[0]) {
			if _, err := c.Read(b); err != nil {
				return nil
			}
		}
		_ = c.SetReadDeadline(time.Time{})
		port++
		mine := port
		if string(line) != "CONNECT 1024\n" {
			return nil
		}
		return func() { g.join(c, mine) }
	})
}

// mapMemory maps a file as a VMM maps its guest's memory.
func mapMemory(path string, flag, prot, mode, size int) ([]byte, error) {
	f, err := os.OpenFile(path, flag, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() < int64(size) {
		return nil, fmt.Errorf("%d bytes, want %d: %w", info.Size(), size, err)
	}
	b, err := unix.Mmap(int(f.Fd()), 0, size, prot, mode|unix.MAP_NORESERVE)
	if err == nil {
		b[size-1] = 1
	}
	return b, err
}

func (v *fakeVMM) snapshot(body []byte) error {
	if err := v.runs("The VM could not be snapshotted"); err != nil {
		return err
	}
	if v.state != "Paused" {
		return internal("The VM could not be snapshotted", "Cannot snapshot VM", "Failed to snapshot migratable component", "Trying to snapshot while VM is running")
	}
	var r struct{ Destination_url string }
	_ = json.Unmarshal(body, &r)
	dir, err := v.own(strings.TrimPrefix(r.Destination_url, "file://"))
	if err != nil {
		return internal("The VM could not be snapshotted", err.Error())
	}
	v.event("vm", "snapshotted")
	if err := v.send(dir); err != nil {
		return internal("The VM could not be snapshotted", "Cannot send VM snapshot", err.Error())
	}
	return nil
}

// send writes configuration, state and memory, in this order, into files that must not be there yet; no memory that is in a shared file.
func (v *fakeVMM) send(dir string) error {
	config, _ := json.Marshal(v.config)
	ranges := []any{}
	if v.taken > 0 {
		ranges = append(ranges, map[string]int64{"gpa": 4 << 30, "length": v.taken})
	}
	if !v.shared() {
		ranges = append(ranges, map[string]int{"gpa": 0, "length": len(v.memory)})
	}
	files := []struct {
		name string
		b    []byte
	}{{"config.json", config}, {"state.json", fakeState(ranges, v.guest.connections())}, {"memory-ranges", v.memory}}
	for _, file := range files[:2+min(len(ranges), 1)] {
		f, err := os.OpenFile(dir+"/"+file.name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return fmt.Errorf("error creating %s: %w", file.name, err)
		}
		_, err = f.Write(file.b)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
		if file.name == "state.json" {
			if err := v.l.spoiled(dir); err != nil {
				return err
			}
		}
	}
	return nil
}

func (v *fakeVMM) shared() bool {
	memory, _ := v.config["memory"].(map[string]any)
	zones, _ := memory["zones"].([]any)
	return zones[0].(map[string]any)["shared"] == true
}

// fakeNode is a part of a state.
type fakeNode struct {
	Snapshots map[string]*fakeNode `json:"snapshots"`
	Data      *fakeData            `json:"snapshot_data"`
}

type fakeData struct {
	State string `json:"state"`
}

// fakeBig is a number that is not one of JavaScript's.
const fakeBig = "18446744073709551615"

func fakeState(ranges, connections any) []byte {
	leaf := func(format string, value any) *fakeNode {
		b, _ := json.Marshal(value)
		return &fakeNode{Snapshots: map[string]*fakeNode{}, Data: &fakeData{fmt.Sprintf(format, b)}}
	}
	b, _ := json.Marshal(&fakeNode{
		Data: &fakeData{`{"clock":null}`},
		Snapshots: map[string]*fakeNode{
			"memory-manager": leaf(`{"memory_ranges":{"data":%s},"start_of_device_area":`+fakeBig+`}`, ranges),
			"device-manager": {Snapshots: map[string]*fakeNode{"vsock": leaf(`{"connections":%s,"acked_features":1}`, connections)}},
		},
	})
	return b
}

// load reads a state as the real one does: memory that is said to have been copied has to be there.
func (v *fakeVMM) load(dir string, state *fakeNode) error {
	var memory struct {
		Ranges struct{ Data []any } `json:"memory_ranges"`
		Start  uint64               `json:"start_of_device_area"`
	}
	var vsock struct{ Connections [][2]uint32 }
	devices := state.Snapshots["device-manager"]
	if state.Snapshots["memory-manager"] == nil || devices == nil || devices.Snapshots["vsock"] == nil {
		return errors.New("missing snapshot data")
	}
	if err := errors.Join(json.Unmarshal([]byte(state.Snapshots["memory-manager"].Data.State), &memory),
		json.Unmarshal([]byte(devices.Snapshots["vsock"].Data.State), &vsock)); err != nil {
		return err
	}
	if fmt.Sprint(memory.Start) != fakeBig {
		return fmt.Errorf("the device area is at %d", memory.Start)
	}
	if len(memory.Ranges.Data) == 0 {
		return nil
	}
	_, err := os.Stat(dir + "/memory-ranges")
	return err
}

func (v *fakeVMM) restore(body []byte, fds int) error {
	const what = "The VM could not be restored"
	var r struct {
		Source_url string
		Resume     bool
		Net_fds    []struct{ Num_fds int }
	}
	if json.Unmarshal(body, &r) != nil {
		return &refused{400, []string{"Failed to deserialize JSON"}}
	}
	if v.config != nil {
		return internal(what, "VM is already created")
	}
	want := 0
	for _, n := range r.Net_fds {
		want += n.Num_fds
	}
	if want != fds {
		return &refused{400, []string{"Bad Request"}}
	}
	dir, err := v.own(strings.TrimPrefix(r.Source_url, "file://"))
	if err != nil {
		return internal(what, err.Error())
	}
	var state fakeNode
	for name, to := range map[string]any{"config.json": &v.config, "state.json": &state} {
		b, err := os.ReadFile(dir + "/" + name)
		if err == nil {
			err = json.Unmarshal(b, to)
		}
		if err != nil {
			v.config = nil
			return internal(what, "Error deserialising VM state snapshot", err.Error())
		}
	}
	if err := v.load(dir, &state); err != nil {
		v.config = nil
		return internal(what, err.Error())
	}
	cards, _ := v.config["net"].([]any)
	if len(cards) != fds {
		return internal(what, "Number of Net FDs passed for 'net' during Restore")
	}
	for _, c := range cards {
		if c.(map[string]any)["host_mac"] != nil {
			return internal(what, "Error setting the tap's address: Operation not permitted")
		}
	}
	if err := v.open(); err != nil {
		v.config = nil
		return internal(what, err.Error())
	}
	v.state = "Paused"
	v.event("vm", "restored")
	if r.Resume && v.release() >= 52 {
		v.state = "Running"
		v.event("vm", "resumed")
	}
	v.guest.freeze(v.state == "Paused")
	return nil
}

// fakeGuest speaks as Command testguest does. What it keeps is in its memory and on its disk.
type fakeGuest struct {
	v       *fakeVMM
	console *os.File

	mu    sync.Mutex
	still bool
	off   bool
	last  io.Closer
	// latest is the host's port of last.
	latest uint32
	conns  map[uint32]*net.UnixConn // by the host's port
	disks  []*fakeDisk
}

// halt is its end: nothing of it uses the memory any more.
func (g *fakeGuest) halt() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.off = true
	for _, c := range g.conns {
		_ = c.Close()
	}
}

func (g *fakeGuest) print(s string) { _, _ = io.WriteString(g.console, s) }

func (g *fakeGuest) freeze(still bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.still = still
}

// connections are what a state says of them.
func (g *fakeGuest) connections() (pairs [][2]uint32) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for port := range g.conns {
		pairs = append(pairs, [2]uint32{port, 1024})
	}
	return pairs
}

// do is what the guest does while it runs: a paused one stands before it. False is its end.
func (g *fakeGuest) do(f func()) bool {
	for {
		g.mu.Lock()
		still, off := g.still, g.off
		if !still && !off {
			f()
		}
		g.mu.Unlock()
		if off || !still {
			return !off
		}
		g.v.mu.Lock()
		closed := g.v.closed
		g.v.mu.Unlock()
		if closed {
			return false
		}
		time.Sleep(time.Millisecond) // a fake's clock
	}
}

// join is a connection of the host's.
func (g *fakeGuest) join(c *net.UnixConn, port uint32) {
	late := false // another that came after it has been joined already
	if !g.do(func() {
		of := fmt.Sprintf("%-10d", port)
		if g.last == nil && string(g.v.memory[8192:8202]) == of {
			g.v.l.t.Errorf("the first connection has port %d, and so has one that the guest had when its state was saved", port)
		}
		if late = port < g.latest; late {
			return
		}
		copy(g.v.memory[8192:], of) // the guest lets it linger, in its clones too
		if g.last != nil {
			_ = g.last.Close()
		}
		g.last, g.latest, g.conns[port] = c, port, c
	}) || late {
		return
	}
	defer func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.conns, port)
	}()
	if _, err := fmt.Fprintf(c, "OK %d\n", port); err != nil {
		return
	}
	for r := bufio.NewReader(c); ; {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		if n, is := strings.CutPrefix(line, "echo "); is {
			if !g.do(func() {}) || !echoes(c, r, n) {
				return
			}
			continue
		}
		more := false
		if !g.do(func() { more = g.obey(c, line) }) || !more {
			return
		}
	}
}

func echoes(c io.Writer, r io.Reader, size string) bool {
	var n int64
	_, _ = fmt.Sscan(size, &n)
	_, err := io.CopyN(c, r, n)
	return err == nil
}

// obey is done while the guest's lock is held.
func (g *fakeGuest) obey(c io.Writer, line string) bool {
	verb, arg, _ := strings.Cut(strings.TrimSpace(line), " ")
	answer := "ok"
	switch verb {
	case "sync":
		answer = "sync " + arg
	case "set":
		page := g.v.memory[4096:8192]
		clear(page)
		copy(page, arg)
	case "get":
		answer = string(bytes.TrimRight(g.v.memory[4096:8192], "\x00"))
	case "dirty":
		for i := range 20 {
			g.v.memory[(10+i)*4096]++
		}
	case "disk-put", "disk-get", "disk-fill", "sum":
		answer = g.disk(verb, arg)
	case "print":
		g.print(arg + "\n")
	case "poweroff":
		g.v.event("vm", "shutdown")
		return false
	case "reboot":
		g.v.event("vm", "rebooting")
		return false
	case "panic":
		g.print("Kernel panic - not syncing\n")
		g.v.event("guest", "panic")
		return false
	default:
		return true
	}
	_, err := io.WriteString(c, answer+"\n")
	return err == nil
}

// disk uses the second disk, which is smaller than the real ones are, or reads the one that is named.
func (g *fakeGuest) disk(verb, arg string) string {
	device := "/dev/vdb"
	if verb == "sum" {
		device = arg
	}
	n := len(device) - 1
	if device[:n] != "/dev/vd" || int(device[n]-'a') >= len(g.disks) {
		return fmt.Sprintf("open %s: no such file or directory", device)
	}
	d := g.disks[device[n]-'a']
	b, err := os.ReadFile(d.path)
	if err != nil {
		return err.Error()
	}
	last := b[len(b)-512:]
	switch verb {
	case "disk-get":
		d.reads.add(512)
		return string(bytes.TrimRight(last, "\x00"))
	case "sum":
		d.reads.add(len(b))
		return fmt.Sprintf("%x", sha256.Sum256(b))
	case "disk-fill":
		d.writes.add(len(b))
		copy(b, bytes.Repeat([]byte("fill"), len(b)/4))
	default:
		d.writes.add(512)
		clear(last)
		copy(last, arg)
	}
	if err := os.WriteFile(d.path, b, 0); err != nil {
		return err.Error()
	}
	return "ok"
}
