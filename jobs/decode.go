package jobs

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf16"
	"unicode/utf8"
)

// Strictness says what an unknown field is.
type Strictness int

// The modes: brokers are lenient, so that older and newer clients live together; the CLI and REST are strict.
const (
	Lenient Strictness = iota // a warning
	Strict                    // a fault
)

// maxDepth is how deep a spec's JSON may nest; the contract itself needs 5.
const maxDepth = 16

// Decode reads a spec from JSON and validates it. Every fault is in the one *Error that it returns, each with its field's path and
// what would be valid; warnings name unknown fields and the nearest known ones. A *BugError is our own fault.
func Decode(data []byte, mode Strictness) (_ *Spec, _ []string, err error) {
	defer caught(&err)
	if len(data) > MaxSpecBytes {
		return nil, nil, &Error{Code: CodeTooLarge, Message: fmt.Sprintf("the spec has %d bytes, at most %d are taken; large files go in as objects", len(data), MaxSpecBytes)}
	}
	spec := new(Spec)
	d := decode(data, spec)
	var warnings []string
	if mode == Lenient {
		warnings = d.warnings()
	} else {
		d.faults = append(d.faults, d.unknown...)
	}
	if !d.unreadable {
		d.faults = append(d.faults, spec.faults()...)
	}
	if len(d.faults) > 0 {
		return nil, warnings, invalid("invalid job spec", d.faults)
	}
	return spec, warnings, nil
}

// decode reads a JSON object into what a pointer to a struct points to.
func decode(data []byte, into any) *decoder {
	d := &decoder{data: data, json: json.NewDecoder(bytes.NewReader(data))}
	d.json.UseNumber()
	if !utf8.Valid(data) {
		d.unread("not valid UTF-8 at byte %d; send binary files as base64", validPrefix(data))
		return d
	}
	tree := d.value("", 0)
	if d.broken == nil {
		if _, err := d.json.Token(); !errors.Is(err, io.EOF) {
			d.fault("", "something follows the JSON object")
		}
	}
	if d.broken != nil {
		d.unread("not JSON: %v", d.broken)
		return d
	}
	if _, ok := tree.(map[string]any); !ok {
		d.unread("must be a JSON object, is %s", kindOf(tree))
		return d
	}
	d.assign(reflect.ValueOf(into).Elem(), tree, "")
	return d
}

// Validate checks a spec that was made in Go; Decode has done so already. A *BugError is our own fault.
func (s *Spec) Validate() (err error) {
	defer caught(&err)
	if faults := s.faults(); len(faults) > 0 {
		return invalid("invalid job spec", faults)
	}
	_, err = s.Encode()
	return err
}

// Encode gives the spec as Paddock keeps it and sends it on. That is larger than what the client wrote where Go escapes characters that
// the client did not, '<' among them: an error says that it is too large.
func (s *Spec) Encode() ([]byte, error) {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // plain data
	}
	if len(b) > MaxSpecBytes {
		return nil, &Error{Code: CodeTooLarge, Message: fmt.Sprintf("the spec has %d bytes with all characters escaped, at most %d are taken; large files go in as objects", len(b), MaxSpecBytes)}
	}
	return b, nil
}

const (
	// maxFaults bounds what an error carries: past it a client has enough to do.
	maxFaults = 50
	// maxKept bounds the faults that are looked for: a request of a mebibyte may have some hundred thousand.
	maxKept = 1000
)

func invalid(what string, faults []Fault) *Error {
	slices.SortStableFunc(faults, func(a, b Fault) int { return strings.Compare(a.Path, b.Path) })
	n := len(faults)
	if n > maxFaults {
		more := fmt.Sprintf("and %d more", n-maxFaults)
		if n >= maxKept {
			more += ", at least"
		}
		faults = append(faults[:maxFaults:maxFaults], Fault{"", more})
	}
	return &Error{Code: CodeInvalid, Message: what, Faults: faults}
}

func validPrefix(b []byte) (n int) {
	for n < len(b) {
		r, size := utf8.DecodeRune(b[n:])
		if r == utf8.RuneError && size == 1 {
			return n
		}
		n += size
	}
	return n
}

// decoder reads JSON in two passes: tokens into a tree, so that duplicate keys and depth are seen, then the tree into the struct, so
// that every wrong type is a fault with its path instead of the end.
type decoder struct {
	data       []byte
	json       *json.Decoder
	broken     error
	unreadable bool // nothing could be made of it, and faults says why
	faults     []Fault
	unknown    []Fault
	passed     int // unknown fields that are not kept
}

// unread says why nothing can be made of the whole.
func (d *decoder) unread(format string, args ...any) {
	d.unreadable, d.faults = true, []Fault{{"", fmt.Sprintf(format, args...)}}
}

// warnings are the unknown fields, as far as a reply names them.
func (d *decoder) warnings() (l []string) {
	for i, u := range d.unknown {
		if i == maxFaults {
			return append(l, fmt.Sprintf("and %d more", len(d.unknown)+d.passed-maxFaults))
		}
		l = append(l, u.Path+": "+u.Message)
	}
	return l
}

func (d *decoder) fault(path, format string, args ...any) {
	(*checker)(&d.faults).fault(path, format, args...)
}

// value reads one value; null and anything after an error is nil.
func (d *decoder) value(path string, depth int) any {
	tok := d.token(path)
	delim, ok := tok.(json.Delim)
	if !ok {
		return tok
	}
	if depth == maxDepth {
		d.broken = fmt.Errorf("nested deeper than %d at %s", maxDepth, path)
		return nil
	}
	if delim == '[' {
		list := []any{}
		for d.more() {
			list = append(list, d.value(place(path, len(list)), depth+1))
		}
		d.token(path)
		return list
	}
	object := map[string]any{}
	for d.more() {
		key, _ := d.token(path).(string)
		at := join(path, key)
		v := d.value(at, depth+1)
		if _, twice := object[key]; twice {
			d.fault(at, "given twice")
		}
		object[key] = v
	}
	d.token(path)
	return object
}

func (d *decoder) more() bool { return d.broken == nil && d.json.More() }

// token reads one token of what is at path. A string that is no text is a fault: encoding/json would make U+FFFD of half a surrogate pair.
func (d *decoder) token(path string) json.Token {
	if d.broken != nil {
		return nil
	}
	from := d.json.InputOffset()
	tok, err := d.json.Token()
	if s, ok := tok.(string); ok && strings.ContainsRune(s, utf8.RuneError) && halfPair(d.data[from:d.json.InputOffset()]) {
		d.fault(path, `must be valid Unicode, holds half of a surrogate pair (\ud800 to \udfff)`)
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	d.broken = err
	return tok
}

// halfPair tells whether a JSON string, as it is written, escapes one half of a surrogate pair without the other.
func halfPair(raw []byte) bool {
	for i := 0; i < len(raw); i++ {
		if raw[i] != '\\' {
			continue
		}
		r := escaped(raw[i:])
		switch {
		case !utf16.IsSurrogate(r):
			i++ // what is escaped is passed over
		case utf16.DecodeRune(r, escaped(raw[i+6:])) == utf8.RuneError:
			return true
		default:
			i += 11
		}
	}
	return false
}

// escaped gives the character of a \uXXXX at the beginning of s; 0 where there is none.
func escaped(s []byte) rune {
	if len(s) < 6 || s[0] != '\\' || s[1] != 'u' {
		return 0
	}
	n, err := strconv.ParseUint(string(s[2:6]), 16, 16)
	if err != nil {
		return 0
	}
	return rune(n)
}

// place gives the path of a list's element.
func place(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

// join gives the path of a key; one that is no plain name is quoted.
func join(path, key string) string {
	if len(key) > 64 {
		key = key[:64] + "…"
	}
	if strings.ContainsAny(key, ".[]\" \n\t") || key == "" {
		return path + "[" + strconv.Quote(key) + "]"
	}
	if path == "" {
		return key
	}
	return path + "." + key
}

// assign puts a value of the tree into a field.
func (d *decoder) assign(v reflect.Value, tree any, path string) {
	if tree == nil {
		return // null is absence
	}
	switch v.Kind() {
	case reflect.Pointer:
		p := reflect.New(v.Type().Elem())
		d.assign(p.Elem(), tree, path)
		v.Set(p)
	case reflect.Struct:
		d.assignStruct(v, tree, path)
	case reflect.Slice:
		d.assignSlice(v, tree, path)
	case reflect.Map:
		object, ok := tree.(map[string]any)
		if !ok {
			d.fault(path, "must be an object, is %s", kindOf(tree))
			return
		}
		m := reflect.MakeMap(v.Type())
		for k, x := range object {
			e := reflect.New(v.Type().Elem()).Elem()
			d.assign(e, x, join(path, k))
			m.SetMapIndex(reflect.ValueOf(k), e)
		}
		v.Set(m)
	case reflect.String:
		s, ok := tree.(string)
		if !ok {
			d.fault(path, "must be a string, is %s", kindOf(tree))
			return
		}
		v.SetString(s)
	case reflect.Bool:
		b, ok := tree.(bool)
		if !ok {
			d.fault(path, "must be true or false, is %s", kindOf(tree))
			return
		}
		v.SetBool(b)
	case reflect.Int, reflect.Int64:
		d.assignInt(v, tree, path)
	default:
		panic("jobs: no rule for a field of kind " + v.Kind().String())
	}
}

func (d *decoder) assignInt(v reflect.Value, tree any, path string) {
	n, ok := tree.(json.Number)
	if !ok {
		d.fault(path, "must be a whole number, is %s", kindOf(tree))
		return
	}
	i, err := strconv.ParseInt(n.String(), 10, 64)
	if err != nil {
		if f, ferr := n.Float64(); ferr == nil && f == float64(int64(f)) && f > -1e15 && f < 1e15 {
			i, err = int64(f), nil // 1e3 is a whole number too
		}
	}
	if err != nil {
		d.fault(path, "must be a whole number of at most 63 bits, is %.40s", n.String())
		return
	}
	v.SetInt(i)
}

func (d *decoder) assignSlice(v reflect.Value, tree any, path string) {
	if v.Type().Elem().Kind() == reflect.Uint8 {
		s, ok := tree.(string)
		if !ok {
			d.fault(path, "must be a base64 string, is %s", kindOf(tree))
			return
		}
		b, err := base64.StdEncoding.DecodeString(s)
		if err != nil {
			d.fault(path, "must be base64 in the standard alphabet: %v", err)
			return
		}
		v.SetBytes(b)
		return
	}
	list, ok := tree.([]any)
	if !ok {
		d.fault(path, "must be a list, is %s", kindOf(tree))
		return
	}
	s := reflect.MakeSlice(v.Type(), len(list), len(list))
	for i, x := range list {
		d.assign(s.Index(i), x, place(path, i))
	}
	v.Set(s)
}

// assignTime reads a time as RFC 3339 has it. What the ledger keeps is whole microseconds, and nothing else is told apart.
func (d *decoder) assignTime(v reflect.Value, tree any, path string) {
	s, ok := tree.(string)
	if !ok {
		d.fault(path, "must be a time like 2030-01-02T15:04:05Z, is %s", kindOf(tree))
		return
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		d.fault(path, "%.40q must be a time like 2030-01-02T15:04:05Z (RFC 3339)", s)
		return
	}
	v.Set(reflect.ValueOf(t.UTC().Truncate(time.Microsecond)))
}

func (d *decoder) assignStruct(v reflect.Value, tree any, path string) {
	if v.Type() == reflect.TypeFor[time.Time]() {
		d.assignTime(v, tree, path)
		return
	}
	object, ok := tree.(map[string]any)
	if !ok {
		d.fault(path, "must be an object, is %s", kindOf(tree))
		return
	}
	fields := knownFields(v.Type())
	for key, x := range object {
		i, known := fields[key]
		switch {
		case !known && len(d.unknown) == maxKept:
			d.passed++
			continue
		case !known:
			d.unknown = append(d.unknown, Fault{join(path, key), unknownMessage(key, fields)})
			continue
		}
		d.assign(v.FieldByIndex(i), x, join(path, key))
	}
}

// decoded remembers fieldsOf, of the few types that there are: every job's spec is decoded.
var decoded sync.Map

// knownFields is fieldsOf. Nobody changes what it gives.
func knownFields(t reflect.Type) map[string][]int {
	if m, ok := decoded.Load(t); ok {
		return m.(map[string][]int)
	}
	m, _ := decoded.LoadOrStore(t, fieldsOf(t))
	return m.(map[string][]int)
}

// fieldsOf gives the places of a struct's fields by their JSON names, those of embedded structs included.
func fieldsOf(t reflect.Type) map[string][]int {
	m := make(map[string][]int, t.NumField())
	for _, f := range reflect.VisibleFields(t) {
		if !f.Anonymous {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			m[name] = f.Index
		}
	}
	return m
}

func kindOf(tree any) string {
	switch tree.(type) {
	case nil:
		return "null"
	case string:
		return "a string"
	case bool:
		return "true or false"
	case json.Number:
		return "a number"
	case []any:
		return "a list"
	default:
		return "an object"
	}
}
