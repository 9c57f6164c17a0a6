package config

import (
	"encoding"
	"fmt"
	"reflect"
	"strings"
	"time"
	"unicode"
)

// setting is one place in a configuration: a section (struct) with children, or
// a value. Sections embedded with ",inline" have none of their own; their fields
// are children of the outer one, but the struct is kept to be validated.
type setting struct {
	key    string // the last key of the path, or "[0]" for an element of a list
	path   string // "" for the whole
	doc    string
	env    string // "" if it cannot be set so
	flag   string
	kind   settingKind
	inline bool
	live   bool
	value  reflect.Value // settable
	origin origin
	lines  []int  // in the file, of the items of a list of values
	file   string // the tag of a setting that names a file

	children []*setting
}

type settingKind int

const (
	section  settingKind = iota
	scalar               // one text
	scalars              // a list of texts
	sections             // a list of structs
)

type originKind int

const (
	fromDefault originKind = iota
	fromFile
	fromEnv
	fromFlag
)

// origin is where a setting's value came from.
type origin struct {
	kind originKind
	name string // file, variable or flag
	line int
}

func (o origin) String() string {
	switch o.kind {
	case fromFile:
		return fmt.Sprintf("file %s:%d", o.name, o.line)
	case fromEnv:
		return "env " + o.name
	case fromFlag:
		return "flag --" + o.name
	}
	return "default"
}

// newTree describes the struct that dst points to. An error is the program's
// fault, not the user's.
func newTree(dst any) (*setting, error) {
	v := reflect.ValueOf(dst)
	if v.Kind() != reflect.Pointer || v.IsNil() || v.Elem().Kind() != reflect.Struct {
		return nil, fmt.Errorf("configuration %T: want a pointer to a struct", dst)
	}
	root := &setting{value: v.Elem()}
	if err := root.grow(nil); err != nil {
		return nil, err
	}
	seen := map[string]string{}
	for s := range root.leaves {
		for _, name := range []string{s.env, "--" + s.flag} {
			if other, ok := seen[name]; ok && name != "" && name != "--" {
				return nil, fmt.Errorf("settings %s and %s would both be %s: rename one", other, s.path, name)
			}
			seen[name] = s.path
		}
	}
	return root, nil
}

// grow fills s.children from the struct s.value; outer are the types around it.
func (s *setting) grow(outer []reflect.Type) error {
	t := s.value.Type()
	for _, o := range outer {
		if o == t {
			return fmt.Errorf("configuration type %v contains itself", t)
		}
	}
	outer = append(outer[:len(outer):len(outer)], t)
	for i := range t.NumField() {
		field := t.Field(i)
		name, option, _ := strings.Cut(field.Tag.Get("yaml"), ",")
		if !field.IsExported() || name == "-" {
			continue
		}
		c := &setting{value: s.value.Field(i), doc: field.Tag.Get("doc"), path: s.path}
		c.file = field.Tag.Get("file")
		c.live = s.live || field.Tag.Get("live") == "true"
		c.inline = option == "inline" || field.Anonymous && name == ""
		if !c.inline {
			if name == "" {
				name = camel(field.Name)
			}
			c.setPath(s, name, field.Tag.Get("flag"))
		}
		if err := c.classify(outer); err != nil {
			return fmt.Errorf("field %v.%s: %w", t, field.Name, err)
		}
		if other := s.child(c.key); other != nil && !c.inline {
			return fmt.Errorf("type %v has two settings called %s", t, c.path)
		}
		s.children = append(s.children, c)
	}
	return nil
}

// setPath names s as key of outer.
func (s *setting) setPath(outer *setting, key, flag string) {
	s.key, s.path = key, key
	if outer.path != "" {
		s.path = outer.path + "." + key
	}
	words := words(s.path)
	s.env = envPrefix + strings.ToUpper(strings.Join(words, "_"))
	if s.value.Type() == reflect.TypeFor[Redacted]() {
		return // every user of the machine sees the arguments of a process
	}
	switch flag {
	case "":
		s.flag = strings.Join(words, "-")
	case "-":
	default:
		s.flag = flag
	}
}

// classify sets s.kind from the type of its value and grows what is below it.
func (s *setting) classify(outer []reflect.Type) error {
	t := s.value.Type()
	switch {
	case isScalar(t):
		s.kind = scalar
	case t.Kind() == reflect.Struct:
		s.kind = section
		s.env, s.flag = "", ""
		return s.grow(outer)
	case t.Kind() == reflect.Slice && isScalar(t.Elem()):
		s.kind = scalars
	case t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Struct:
		s.kind = sections
		s.env, s.flag = "", ""
		return s.growElements(outer)
	default:
		return fmt.Errorf(`type %v is not supported in a configuration; tag the field yaml:"-" to leave it out`, t)
	}
	return nil
}

// growElements makes one child for each element of the list of structs that s
// holds. An empty list is tried with one element, so that a bad type is found
// whatever the list holds.
func (s *setting) growElements(outer []reflect.Type) error {
	if s.value.Len() == 0 {
		return s.sample().grow(outer)
	}
	s.children = nil
	for i := range s.value.Len() {
		c := &setting{value: s.value.Index(i), key: fmt.Sprintf("[%d]", i), origin: s.origin}
		c.path = s.path + c.key
		if err := c.grow(outer); err != nil {
			return err
		}
		// An element has no name in the environment or among the flags.
		for leaf := range c.leaves {
			leaf.env, leaf.flag = "", ""
		}
		s.children = append(s.children, c)
	}
	return nil
}

// sample is an element of s's list that is not in it.
func (s *setting) sample() *setting {
	return &setting{value: reflect.New(s.value.Type().Elem()).Elem(), path: s.path + "[]"}
}

// leaves calls yield for each setting below s that holds a value: an iterator.
func (s *setting) leaves(yield func(*setting) bool) {
	s.walkLeaves(yield)
}

func (s *setting) walkLeaves(yield func(*setting) bool) bool {
	for _, c := range s.children {
		if c.kind == section || c.kind == sections && len(c.children) > 0 {
			if !c.walkLeaves(yield) {
				return false
			}
			continue
		}
		if !yield(c) {
			return false
		}
	}
	return true
}

// named calls yield for each child by key, those of inline structs among them.
func (s *setting) named(yield func(*setting) bool) {
	s.walkNamed(yield)
}

func (s *setting) walkNamed(yield func(*setting) bool) bool {
	for _, c := range s.children {
		if c.inline {
			if !c.walkNamed(yield) {
				return false
			}
			continue
		}
		if !yield(c) {
			return false
		}
	}
	return true
}

// child finds the setting with that key in section s, or nil.
func (s *setting) child(key string) *setting {
	for c := range s.named {
		if c.key == key {
			return c
		}
	}
	return nil
}

func isScalar(t reflect.Type) bool {
	if reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) || t == reflect.TypeFor[time.Duration]() {
		return true
	}
	switch t.Kind() {
	case reflect.Bool, reflect.String, reflect.Float32, reflect.Float64,
		reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return true
	}
	return false
}

// camel turns a Go field name into a key: MaxBytes is maxBytes, CAFile caFile.
func camel(name string) string {
	runes := []rune(name)
	for i, r := range runes {
		last := i+1 == len(runes)
		if !unicode.IsUpper(r) || i > 0 && !last && !unicode.IsUpper(runes[i+1]) {
			break
		}
		runes[i] = unicode.ToLower(r)
	}
	return string(runes)
}

// words splits a path into lower-case words: origin.dockerConfig is origin,
// docker, config.
func words(path string) []string {
	var out []string
	for part := range strings.FieldsFuncSeq(path, func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) }) {
		start := 0
		runes := []rune(part)
		for i := 1; i < len(runes); i++ {
			if unicode.IsUpper(runes[i]) && !unicode.IsUpper(runes[i-1]) {
				out = append(out, strings.ToLower(string(runes[start:i])))
				start = i
			}
		}
		out = append(out, strings.ToLower(string(runes[start:])))
	}
	return out
}
