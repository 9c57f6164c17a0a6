package config

import (
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// Bind adds a flag to flags for each setting of dst, a pointer to a struct that
// holds the defaults, that the command line can carry. Parsing the flags leaves
// dst as it is: Load sets it, in the right order. A bad value is refused at
// parsing. An error is the program's fault.
func Bind(flags *pflag.FlagSet, dst any) error {
	root, err := newTree(dst)
	if err != nil {
		return err
	}
	for s := range root.leaves {
		if s.flag == "" {
			continue
		}
		if flags.Lookup(s.flag) != nil {
			return fmt.Errorf("setting %s and something else both want the flag --%s: rename one", s.path, s.flag)
		}
		// One sentence is enough for a list; `config defaults` prints the rest.
		usage, _, _ := strings.Cut(s.doc, ". ")
		usage = strings.TrimRight(usage, ".")
		if s.env != "" {
			usage = strings.TrimSpace(usage + " (" + s.env + ")")
		}
		f := flags.VarPF(newFlag(s), s.flag, "", usage)
		if s.value.Kind() == reflect.Bool {
			f.NoOptDefVal = "true"
		}
	}
	return nil
}

// flagValue holds what the command line said of a setting until Load asks.
type flagValue struct {
	scratch reflect.Value // a copy to parse into
	list    bool
	kind    string
	said    []string
	initial string
}

func newFlag(s *setting) *flagValue {
	v := &flagValue{scratch: reflect.New(s.value.Type()).Elem(), list: s.kind == scalars}
	if v.list {
		v.kind, v.initial = kindName(s.value.Type().Elem())+"s", strings.Join(formatItems(s.value), ",")
		return v
	}
	v.kind, v.initial = kindName(s.value.Type()), formatText(s.value)
	if s.value.IsZero() && v.kind != "bool" {
		v.initial = ""
	}
	return v
}

// Set takes one value, or some items more of a list.
func (v *flagValue) Set(text string) error {
	said := []string{text}
	if v.list {
		said = append(v.said, splitList(text)...)
	}
	if err := v.apply(v.scratch, said); err != nil {
		return err
	}
	v.said = said
	return nil
}

func (v *flagValue) apply(to reflect.Value, said []string) error {
	if v.list {
		return setList(to, said)
	}
	return setText(to, said[0])
}

// String is the value as the help shows it.
func (v *flagValue) String() string {
	if v.said != nil {
		return strings.Join(v.said, ",")
	}
	return v.initial
}

// Type names what follows the flag.
func (v *flagValue) Type() string { return v.kind }

func kindName(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[time.Duration]():
		return "duration"
	case t == reflect.TypeFor[Bytes]():
		return "size"
	case t.Kind() == reflect.Bool:
		return "bool"
	case t.Kind() >= reflect.Int && t.Kind() <= reflect.Float64 && !hasText(t):
		return "number"
	}
	return "string"
}

func hasText(t reflect.Type) bool {
	_, ok := reflect.New(t).Interface().(interface{ UnmarshalText([]byte) error })
	return ok
}

// applyFlags sets the settings whose flags were given.
func applyFlags(root *setting, flags *pflag.FlagSet) []error {
	if flags == nil {
		return nil
	}
	var problems []error
	for s := range root.leaves {
		if s.flag == "" {
			continue
		}
		f := flags.Lookup(s.flag)
		if f == nil || !f.Changed {
			continue
		}
		v, ok := f.Value.(*flagValue)
		if !ok || v.scratch.Type() != s.value.Type() {
			continue
		}
		if err := v.apply(s.value, v.said); err != nil {
			problems = append(problems, fmt.Errorf("flag --%s: %w", s.flag, err))
			continue
		}
		s.origin = origin{kind: fromFlag, name: s.flag}
	}
	return problems
}
