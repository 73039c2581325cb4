package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
	"gopkg.in/yaml.v3"
)

// within bounds what a script waits for; it is for machines that are loaded, not a measure of anything.
const within = time.Minute

// processes are what a script has started, by the names that it gave them.
type processes struct{ byName map[string]*process }

type processesKey struct{}

type process struct {
	cmd  *exec.Cmd
	in   io.WriteCloser // nil: /dev/null
	done chan struct{}  // closed when it has been reaped
}

func (p *processes) stop() {
	for _, x := range p.byName {
		_ = x.cmd.Process.Signal(syscall.SIGTERM)
	}
	for _, x := range p.byName {
		select {
		case <-x.done:
		case <-time.After(within):
			_ = x.cmd.Process.Kill()
			<-x.done
		}
	}
}

func named(ts *testscript.TestScript, name string) *process {
	p := ts.Value(processesKey{}).(*processes).byName[name]
	if p == nil {
		ts.Fatalf("no process %s", name)
	}
	return p
}

// start runs a command in the background: start [-pipe|-tty] NAME COMMAND ARG…
func start(ts *testscript.TestScript, neg bool, args []string) {
	how := ""
	if len(args) > 0 && strings.HasPrefix(args[0], "-") {
		how, args = args[0], args[1:]
	}
	if neg || len(args) < 2 {
		ts.Fatalf("usage: start [-pipe|-tty] NAME COMMAND ARG…")
	}
	name := args[0]
	path, err := lookPath(args[1], ts.Getenv("PATH"))
	ts.Check(err)
	p := &process{cmd: exec.Command(path, args[2:]...), done: make(chan struct{})}
	p.cmd.Dir, p.cmd.Env = ts.MkAbs("."), scriptEnv(ts)
	out, err := os.Create(ts.MkAbs(name + ".out"))
	ts.Check(err)
	errs, err := os.Create(ts.MkAbs(name + ".err"))
	ts.Check(err)
	defer out.Close()
	defer errs.Close()
	p.cmd.Stdout, p.cmd.Stderr = out, errs
	if how == "-pipe" {
		p.in, err = p.cmd.StdinPipe()
		ts.Check(err)
	}
	if how == "-tty" {
		control, terminal, err := openTerminal()
		ts.Check(err)
		defer terminal.Close()
		p.in = control
		p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = terminal, terminal, terminal
		p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
		copied := control // what the terminal shows goes to NAME.out, as long as anybody has it open
		shown, err := os.OpenFile(out.Name(), os.O_WRONLY|os.O_APPEND, 0)
		ts.Check(err)
		go func() {
			_, _ = io.Copy(shown, copied)
			_ = shown.Close()
		}()
	}
	ts.Check(p.cmd.Start())
	go func() {
		_ = p.cmd.Wait() // its state tells
		close(p.done)
	}()
	ts.Value(processesKey{}).(*processes).byName[name] = p
}

// scriptEnv is the script's environment, which testscript does not give out as a whole.
func scriptEnv(ts *testscript.TestScript) (env []string) {
	for _, k := range []string{
		"PATH", "HOME", "USER", "TERM", "TMPDIR", "NO_COLOR", "PADDOCK_LISTEN", "PADDOCK_NATS", "PADDOCK_STATE_DIR", "PADDOCK_IMAGE_DIR",
		"PADDOCK_METRICS_LISTEN", "PADDOCK_AGENT", "PADDOCK_DRIVER", "PADDOCK_INSECURE_NO_ISOLATION", "PADDOCK_READY", "PADDOCK_PREPARED",
		"PADDOCK_LAZY_SYNC", "PADDOCK_NAME",
	} {
		if v := ts.Getenv(k); v != "" || k == "PADDOCK_METRICS_LISTEN" {
			env = append(env, k+"="+v)
		}
	}
	return env
}

func lookPath(name, path string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for dir := range strings.SplitSeq(path, ":") {
		if st, err := os.Stat(dir + "/" + name); err == nil && st.Mode().IsRegular() {
			return dir + "/" + name, nil
		}
	}
	return "", fmt.Errorf("%s: not in PATH", name)
}

// openTerminal gives both ends of a pseudo-terminal of 80 columns (ptmx(4)).
func openTerminal() (control, terminal *os.File, err error) {
	control, err = os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	n, err := unix.IoctlGetInt(int(control.Fd()), unix.TIOCGPTN)
	err = errors.Join(err, unix.IoctlSetPointerInt(int(control.Fd()), unix.TIOCSPTLCK, 0),
		unix.IoctlSetWinsize(int(control.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80}))
	if err == nil {
		terminal, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|syscall.O_NOCTTY, 0)
	}
	if err != nil {
		return nil, nil, errors.Join(err, control.Close())
	}
	return control, terminal, nil
}

// await waits until a file has what matches: await FILE PATTERN
func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: await FILE PATTERN")
	}
	re, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	for end := time.Now().Add(within); ; time.Sleep(5 * time.Millisecond) { // a file tells nobody that it has grown
		b, _ := os.ReadFile(ts.MkAbs(args[0]))
		if re.Match(b) {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("%s has nothing that matches %s:\n%s", args[0], args[1], b)
		}
	}
}

// signalTo sends a signal: signal NAME INT
func signalTo(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: signal NAME SIGNAL")
	}
	ts.Check(named(ts, args[0]).cmd.Process.Signal(unix.SignalNum("SIG" + args[1])))
}

// send writes into a process's input, with Go's escapes; without a text it ends the input: send NAME [TEXT]
func send(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 || len(args) > 2 {
		ts.Fatalf("usage: send NAME [TEXT]")
	}
	in := named(ts, args[0]).in
	if len(args) == 1 {
		ts.Check(in.Close())
		return
	}
	text, err := strconv.Unquote(`"` + args[1] + `"`)
	ts.Check(err)
	_, err = io.WriteString(in, text)
	ts.Check(err)
}

// ends waits for a process's end and checks its exit code: ends NAME CODE
func ends(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: ends NAME CODE")
	}
	p := named(ts, args[0])
	select {
	case <-p.done:
	case <-time.After(within):
		ts.Fatalf("%s does not end:\n%s", args[0], ts.ReadFile(args[0]+".err"))
	}
	if got := strconv.Itoa(p.cmd.ProcessState.ExitCode()); got != args[1] {
		ts.Fatalf("%s ended with %s (%v), want %s:\n%s", args[0], got, p.cmd.ProcessState, args[1], ts.ReadFile(args[0]+".err"))
	}
}

// exits is exec with the exit code: exits CODE COMMAND ARG…
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND ARG…")
	}
	err := ts.Exec(args[1], args[2:]...)
	var exit *exec.ExitError
	got := 0
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if strconv.Itoa(got) != args[0] {
		ts.Fatalf("ended with %d, want %s", got, args[0])
	}
}

// until runs a command again and again until its standard output has what matches: until PATTERN COMMAND ARG…
func until(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: until PATTERN COMMAND ARG…")
	}
	re, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	for end := time.Now().Add(within); ; time.Sleep(100 * time.Millisecond) { // the dispatcher hears of some things by a heartbeat only
		if err := ts.Exec(args[1], args[2:]...); err == nil && re.MatchString(ts.ReadFile("stdout")) {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("%v never printed what matches %s", args[1:], args[0])
		}
	}
}

// jsonIs checks values in a JSON or (-yaml) YAML document, by path: json [-yaml] FILE PATH=VALUE… PATH? is that something is there,
// and PATH{a,b} that an object has exactly these keys.
func jsonIs(ts *testscript.TestScript, neg bool, args []string) {
	asYAML := len(args) > 0 && args[0] == "-yaml"
	if asYAML {
		args = args[1:]
	}
	if neg || len(args) < 1 {
		ts.Fatalf("usage: json [-yaml] FILE PATH=VALUE…")
	}
	tree := document(ts, args[0], asYAML)
	for _, check := range args[1:] {
		path, want, hasValue := strings.Cut(check, "=")
		keyed, keys, hasKeys := strings.Cut(path, "{")
		v, found := at(tree, strings.TrimSuffix(keyed, "?"))
		switch {
		case !found:
			ts.Fatalf("nothing at %s", path)
		case hasKeys:
			if got := keysAt(v); got != strings.TrimSuffix(keys, "}") {
				ts.Fatalf("%s has the keys %s", keyed, got)
			}
		case hasValue && fmt.Sprint(v) != want:
			ts.Fatalf("%s is %v, want %s", path, v, want)
		}
	}
}

// jsonEnv takes a value out of a JSON document: jsonenv VARIABLE FILE PATH
func jsonEnv(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: jsonenv VARIABLE FILE PATH")
	}
	v, ok := at(document(ts, args[1], false), args[2])
	if !ok {
		ts.Fatalf("nothing at %s", args[2])
	}
	ts.Setenv(args[0], fmt.Sprint(v))
}

func document(ts *testscript.TestScript, file string, asYAML bool) (tree any) {
	if asYAML {
		ts.Check(yaml.Unmarshal([]byte(ts.ReadFile(file)), &tree))
		return tree
	}
	d := json.NewDecoder(strings.NewReader(ts.ReadFile(file)))
	d.UseNumber()
	ts.Check(d.Decode(&tree))
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		ts.Fatalf("%s holds more than one JSON value", file)
	}
	return tree
}

// at gives what is at a path of keys and numbers with dots between them; "" and "." are the whole.
func at(tree any, path string) (any, bool) {
	for _, k := range strings.FieldsFunc(path, func(r rune) bool { return r == '.' }) {
		switch t := tree.(type) {
		case map[string]any:
			v, ok := t[k]
			if !ok {
				return nil, false
			}
			tree = v
		case []any:
			i, err := strconv.Atoi(k)
			if err != nil || i >= len(t) {
				return nil, false
			}
			tree = t[i]
		default:
			return nil, false
		}
	}
	return tree, true
}

func keysAt(v any) string {
	var keys []string
	m, _ := v.(map[string]any)
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return strings.Join(keys, ",")
}

// binary writes a file of every byte, many times over: binary FILE
func binary(ts *testscript.TestScript, neg bool, args []string) {
	var all [256]byte
	for i := range all {
		all[i] = byte(i)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), slices.Repeat(all[:], 2000), 0o644))
}
