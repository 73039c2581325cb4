package jobs

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

var (
	tokenRE    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$`)
	envRE      = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,127}$`)
	stepNameRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9 ._-]{0,62}$`)
	labelRE    = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?$`)
	domainRE   = regexp.MustCompile(`^(\*\.)?([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]{2,63}$`)
	sha256RE   = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// ValidTenant checks a tenant's name: one NATS token of letters, digits, _ and -, at most 63.
func ValidTenant(tenant string) error {
	if !tokenRE.MatchString(tenant) {
		return &Error{Code: CodeInvalid, Message: "invalid tenant", Faults: []Fault{{"tenant", fmt.Sprintf("%.80q must be 1 to 63 letters, digits, _ or -", tenant)}}}
	}
	return nil
}

// Hash is the digest of the spec's body: two submissions with one idempotency key must agree in it. ID and key do not count.
func (s *Spec) Hash() string {
	body := *s
	body.ID, body.IdempotencyKey, body.Version = "", "", ""
	b, err := json.Marshal(body)
	if err != nil {
		panic(err) // plain data
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// checker collects faults.
type checker []Fault

func (c *checker) fault(at, format string, args ...any) {
	if !c.full() {
		*c = append(*c, Fault{at, fmt.Sprintf(format, args...)})
	}
}

// full tells whether no more faults are kept: then there is nothing to look for in a list of any length.
func (c *checker) full() bool { return len(*c) >= maxKept }

// text checks what every string must keep: valid UTF-8, no NUL, a length in bytes.
func (c *checker) text(at, s string, most int) {
	switch {
	case len(s) > most:
		c.fault(at, "has %d bytes, at most %d are taken", len(s), most)
	case !utf8.ValidString(s):
		c.fault(at, "must be valid UTF-8")
	case strings.ContainsRune(s, 0):
		c.fault(at, "must not hold a NUL byte")
	}
}

// name checks what something is asked for by, which is not there where it is none: no more than not every ledger can be asked for.
func (c *checker) name(at, s string) { c.text(at, s, maxRequestBytes) }

// within checks a number that may be 0 to most.
func (c *checker) within(at string, v, most int64) {
	if v < 0 || v > most {
		c.fault(at, "is %d, must be 0 to %d", v, most)
	}
}

func (c *checker) oneOf(at, v string, allowed ...string) {
	if v != "" && !slices.Contains(allowed, v) {
		c.fault(at, "is %.80q, must be one of %s", v, strings.Join(allowed, ", "))
	}
}

const (
	maxArg   = 128<<10 - 1 // MAX_ARG_STRLEN of Linux
	maxPath  = 1024
	maxTTLMS = 7 * 24 * 3600 * 1000
)

// faults are all that is wrong with the spec.
func (s *Spec) faults() []Fault {
	c := &checker{}
	c.oneOf("version", s.Version, Version)
	if s.ID != "" {
		if _, err := ParseID(s.ID); err != nil {
			c.fault("id", "%.80q is %v", s.ID, err)
		}
	}
	c.text("idempotency_key", s.IdempotencyKey, 200)
	if s.Image != "" && !imageRE.MatchString(s.Image) {
		c.fault("image", "%.80q must be 1 to 63 lower-case letters, digits, '.', '_' or '-', or snapshot:TENANT/NAME", s.Image)
	}
	s.whatToRun(c)
	s.filesAndArtifacts(c)
	c.limits("limits", s.Limits)
	c.within("resources.vcpus", int64(s.Resources.VCPUs), 256)
	c.within("resources.memory_mib", int64(s.Resources.MemoryMiB), 1<<20)
	s.headroom(c)
	s.network(c)
	if s.Priority != nil {
		c.within("priority", int64(*s.Priority), 9)
	}
	c.within("queue_ttl_ms", s.QueueTTLMS, maxTTLMS)
	if s.InfraRetries != nil {
		c.within("infra_retries", int64(*s.InfraRetries), 10)
	}
	s.scheduling(c)
	s.labels(c)
	s.callbacks(c)
	return *c
}

// whatToRun checks the steps, or the shorthand.
func (s *Spec) whatToRun(c *checker) {
	if s.Language == "" {
		for at, given := range map[string]bool{"source": s.Source != "", "args": len(s.Args) > 0, "stdin": s.Stdin != ""} {
			if given {
				c.fault(at, "belongs to the shorthand: give language too, or use steps")
			}
		}
		if s.Image == "" {
			c.fault("image", "is required, unless language is given")
		}
		if len(s.Steps) == 0 {
			c.fault("steps", "nothing to run: give steps, or language (one of %s) and source", strings.Join(Languages(), ", "))
		}
	} else {
		c.oneOf("language", s.Language, Languages()...)
		if s.Source == "" {
			c.fault("source", "is required with language")
		}
		if len(s.Steps) > 0 {
			c.fault("steps", "cannot be given with language: one or the other")
		}
		c.text("source", s.Source, MaxSpecBytes)
		c.text("stdin", s.Stdin, MaxSpecBytes)
		c.args("args", s.Args)
	}
	if len(s.Steps) > MaxSteps {
		c.fault("steps", "has %d, at most %d are taken", len(s.Steps), MaxSteps)
		return
	}
	names := map[string]bool{}
	for i, st := range s.Steps {
		at := fmt.Sprintf("steps[%d]", i)
		st.check(c, at)
		if st.Name != "" && names[st.Name] {
			c.fault(at+".name", "%q is another step's too", st.Name)
		}
		names[st.Name] = true
		if i == 0 && s.StdinStream && st.Stdin != "" {
			c.fault(at+".stdin", "cannot be given with stdin_stream")
		}
	}
	if s.StdinStream && s.Stdin != "" {
		c.fault("stdin", "cannot be given with stdin_stream")
	}
}

func (st *Step) check(c *checker, at string) {
	switch {
	case st.Cmd == "" && st.Shell == "":
		c.fault(at, "nothing to run: give cmd or shell")
	case st.Cmd != "" && st.Shell != "":
		c.fault(at, "has cmd and shell: give one of them")
	case st.Shell != "" && len(st.Args) > 0:
		c.fault(at+".args", "belong to cmd, not to shell")
	}
	if st.Name != "" && !stepNameRE.MatchString(st.Name) {
		c.fault(at+".name", "%.80q must be 1 to 63 letters, digits, spaces, '.', '_' or '-'", st.Name)
	}
	c.text(at+".cmd", st.Cmd, maxPath)
	c.text(at+".shell", st.Shell, maxArg) // the shell gets it as one argument; longer ones go in as files
	c.text(at+".stdin", st.Stdin, MaxSpecBytes)
	c.args(at+".args", st.Args)
	if len(st.Env) > MaxEnv {
		c.fault(at+".env", "has %d names, at most %d are taken", len(st.Env), MaxEnv)
	}
	for k, v := range st.Env {
		if !envRE.MatchString(k) {
			c.fault(join(at+".env", k), "a name must be a letter or _, then letters, digits or _, at most 128")
		}
		c.text(join(at+".env", k), v, 64<<10)
	}
	if st.Cwd != "" && (!path.IsAbs(st.Cwd) || !clean(st.Cwd)) {
		c.fault(at+".cwd", "%.80q must be an absolute path without '..'", st.Cwd)
	}
	c.text(at+".cwd", st.Cwd, maxPath)
	c.oneOf(at+".user", st.User, "sandbox", "root")
	c.limits(at+".limits", st.Limits)
	if st.Limits.DiskBytes != 0 {
		c.fault(at+".limits.disk_bytes", "is the job's, not a step's: give it in limits")
	}
}

func (c *checker) args(at string, args []string) {
	if len(args) > MaxArgs {
		c.fault(at, "has %d, at most %d are taken", len(args), MaxArgs)
		return
	}
	for i, a := range args {
		c.text(fmt.Sprintf("%s[%d]", at, i), a, maxArg)
	}
}

// clean tells whether a path keeps to where it points: no element "..".
func clean(p string) bool { return !slices.Contains(strings.Split(p, "/"), "..") }

func (s *Spec) filesAndArtifacts(c *checker) {
	if len(s.Files) > MaxFiles {
		c.fault("files", "has %d, at most %d are taken", len(s.Files), MaxFiles)
		return
	}
	seen := map[string]bool{}
	for i, f := range s.Files {
		at := fmt.Sprintf("files[%d]", i)
		f.check(c, at)
		p := inWork(f.Path)
		switch {
		case seen[p]:
			c.fault(at+".path", "%.80q is given twice", f.Path)
		case s.Language != "" && p == inWork(languages[s.Language].file):
			c.fault(at+".path", "%.80q is where source is written; name the file otherwise, or use steps", f.Path)
		}
		seen[p] = true
	}
	s.inline(c)
	if len(s.Artifacts) > MaxArtifacts {
		c.fault("artifacts", "has %d, at most %d are taken", len(s.Artifacts), MaxArtifacts)
		return
	}
	for i, a := range s.Artifacts {
		at := fmt.Sprintf("artifacts[%d]", i)
		c.path(at+".path", a.Path)
		for _, element := range strings.Split(a.Path, "/") {
			if _, err := path.Match(element, ""); err != nil {
				c.fault(at+".path", "%.80q is no valid pattern: %v", a.Path, err)
				break
			}
		}
		c.within(at+".max_bytes", a.MaxBytes, 1<<30)
	}
}

// inWork is where a path of a file is in the machine.
func inWork(p string) string {
	if path.IsAbs(p) {
		return path.Clean(p)
	}
	return path.Join("/work", p)
}

// inline checks that inline contents are not too large; what is largest is to be blamed.
func (s *Spec) inline(c *checker) {
	sum, most, fullest := 0, 0, ""
	add := func(at string, n int) {
		if sum += n; n > most {
			most, fullest = n, at
		}
	}
	add("source", len(s.Source))
	add("stdin", len(s.Stdin))
	for i, st := range s.Steps {
		add(fmt.Sprintf("steps[%d].stdin", i), len(st.Stdin))
	}
	for i, f := range s.Files {
		add(fmt.Sprintf("files[%d]", i), len(f.Text)+len(f.Base64))
	}
	if sum > MaxInlineBytes {
		c.fault(fullest, "inline contents have %d bytes in all, at most %d are taken; larger ones go in as objects", sum, MaxInlineBytes)
	}
}

func (f *File) check(c *checker, at string) {
	c.path(at+".path", f.Path)
	if f.Mode != "" {
		if m, err := strconv.ParseUint(f.Mode, 8, 32); err != nil || m > 0o777 {
			c.fault(at+".mode", "%.20q must be permission bits in octal, like 0644", f.Mode)
		}
	}
	given := 0
	for _, g := range []bool{f.Text != "", len(f.Base64) > 0, f.Object != nil} {
		if g {
			given++
		}
	}
	if given > 1 {
		c.fault(at, "give one of text, base64 and object")
	}
	if o := f.Object; o != nil {
		if o.Name == "" {
			c.fault(at+".object.name", "is required")
		}
		c.text(at+".object.name", o.Name, 255)
		if !sha256RE.MatchString(o.SHA256) {
			c.fault(at+".object.sha256", "must be 64 lower-case hexadecimal digits")
		}
	}
}

// path checks a path in the machine.
func (c *checker) path(at, p string) {
	switch {
	case p == "" || path.Clean(p) == "/" || path.Clean(p) == ".":
		c.fault(at, "must name a file")
	case !clean(p):
		c.fault(at, "%.80q must not hold '..'", p)
	case strings.HasSuffix(p, "/"):
		c.fault(at, "%.80q names a directory", p)
	default:
		c.text(at, p, maxPath)
	}
}

// limits checks that each limit lies between 0 (the default) and the largest that is taken.
func (c *checker) limits(at string, l Limits) {
	m := maxLimits
	for _, x := range []struct {
		name    string
		v, most int64
	}{
		{"wall_ms", l.WallMS, m.WallMS},
		{"cpu_ms", l.CPUMS, m.CPUMS},
		{"memory_bytes", l.MemoryBytes, m.MemoryBytes},
		{"pids", l.PIDs, m.PIDs},
		{"output_bytes", l.OutputBytes, m.OutputBytes},
		{"file_bytes", l.FileBytes, m.FileBytes},
		{"disk_bytes", l.DiskBytes, m.DiskBytes},
		{"open_files", l.OpenFiles, m.OpenFiles},
	} {
		c.within(at+"."+x.name, x.v, x.most)
	}
}

func (s *Spec) headroom(c *checker) {
	h, r := s.Headroom, s.Resources
	c.within("headroom.vcpus", int64(h.VCPUs), 256)
	c.within("headroom.memory_mib", int64(h.MemoryMiB), 1<<20)
	if h.VCPUs > 0 && (r.VCPUs == 0 || h.VCPUs < r.VCPUs) {
		c.fault("headroom.vcpus", "%d must be no less than resources.vcpus, which has to be given with it", h.VCPUs)
	}
	if h.MemoryMiB > 0 && (r.MemoryMiB == 0 || h.MemoryMiB < r.MemoryMiB) {
		c.fault("headroom.memory_mib", "%d must be no less than resources.memory_mib, which has to be given with it", h.MemoryMiB)
	}
}

func (s *Spec) network(c *checker) {
	n := s.Network
	c.oneOf("network.policy", n.Policy, NetworkNone, NetworkInternet, NetworkAllowlist)
	if n.Policy == NetworkAllowlist && len(n.Allow) == 0 {
		c.fault("network.allow", "is required with the policy allowlist: CIDRs and domains")
	}
	if n.Policy != NetworkAllowlist && len(n.Allow) > 0 {
		c.fault("network.allow", "belongs to the policy allowlist")
	}
	if n.IPv6 && !n.NIC() {
		c.fault("network.ipv6", "belongs to the policies internet and allowlist")
	}
	s.ports(c)
	if len(n.Allow) > 256 {
		c.fault("network.allow", "has %d, at most 256 are taken", len(n.Allow))
		return
	}
	for i, a := range n.Allow {
		_, cidrErr := netip.ParsePrefix(a)
		_, addrErr := netip.ParseAddr(a)
		if cidrErr != nil && addrErr != nil && !domainRE.MatchString(a) {
			c.fault(fmt.Sprintf("network.allow[%d]", i), "%.80q must be a CIDR (192.0.2.0/24), an address, or a domain in lower case", a)
		}
	}
}

func (s *Spec) ports(c *checker) {
	ports := s.Network.Ports
	if len(ports) > 16 {
		c.fault("network.ports", "has %d, at most 16 are taken", len(ports))
		return
	}
	for i, p := range ports {
		at := fmt.Sprintf("network.ports[%d]", i)
		if p < 1 || p > 65535 {
			c.fault(at, "%d must be from 1 to 65535", p)
		} else if slices.Contains(ports[:i], p) {
			c.fault(at, "%d is there twice", p)
		}
	}
}

func (s *Spec) labels(c *checker) {
	if len(s.Labels) > 32 {
		c.fault("labels", "has %d, at most 32 are taken", len(s.Labels))
	}
	for k, v := range s.Labels {
		if !labelRE.MatchString(k) {
			c.fault(join("labels", k), "a key must be 1 to 63 letters, digits, '.', '_', '/' or '-', and begin and end with one of the first two")
		}
		c.text(join("labels", k), v, 255)
	}
}

func (s *Spec) callbacks(c *checker) {
	if len(s.Callbacks) > 8 {
		c.fault("callbacks", "has %d, at most 8 are taken", len(s.Callbacks))
		return
	}
	for i, cb := range s.Callbacks {
		at := fmt.Sprintf("callbacks[%d]", i)
		u, err := url.Parse(cb.URL)
		if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.User != nil || len(cb.URL) > 2048 {
			c.fault(at+".url", "must be an http or https URL without credentials, at most 2048 bytes")
		}
		for j, e := range cb.Events {
			if c.full() {
				return
			}
			c.oneOf(fmt.Sprintf("%s.events[%d]", at, j), e, HookRunning, HookRequeued, HookEnded)
		}
	}
}
