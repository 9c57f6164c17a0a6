// Package config fills a binary's configuration structs from one strict YAML
// file, environment variables and flags, and holds what the binaries share
// around that: logging, signals, the operations server, listening, the version.
//
// It knows no setting of its own: each package documents its settings in a
// struct, the binary joins the structs it needs into one and hands that to Load.
// It starts nothing and keeps no state.
//
// A setting's name in the file is its path of keys, such as proxy.listen. From
// it follow the variable DAMSELFLY_PROXY_LISTEN and the flag --proxy-listen.
// Struct tags say the rest:
//
//	yaml:"listen"     the key; without it the field's name in camel case. "-" leaves the field out
//	yaml:",inline"    the fields of an embedded struct belong to the outer one
//	doc:"..."         what the setting does, for help texts and the default file
//	flag:"addr"       another flag name; "-" means no flag. A secret never has one
//	file:"read"       it names a file that must be there when the program starts
//	file:"first"      it names a file that must be there when the program starts first
//	live:"true"       a change takes effect in a program that runs, see Follow
//
// A setting is a string, boolean, number, Duration, Bytes, Redacted or another
// type with UnmarshalText; a list of those; or, in the file only, a list of
// structs. Maps, pointers and interfaces are refused: every key is known.
package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"reflect"

	"github.com/spf13/pflag"
)

// Options says where Load looks. The zero Options reads nothing.
type Options struct {
	// File is the YAML file that the user named; it must exist. Empty: the file
	// that the variable DAMSELFLY_CONFIG in Env names, which must exist too, or
	// else DefaultFile.
	File string
	// DefaultFile is read if it exists.
	DefaultFile string
	// Env holds NAME=value pairs, as os.Environ returns them.
	Env []string
	// Flags is a parsed set on which Bind was called for the same type.
	Flags *pflag.FlagSet
}

// maxFile bounds the configuration file, in bytes. A larger one is some other
// file.
const maxFile = 1 << 20

// Loaded tells where each setting of a configuration came from.
type Loaded struct {
	// File is the file that was read, or empty.
	File string
	// Warnings are for the log: each names something that was ignored and why.
	Warnings []string

	root *setting
}

// Load fills dst, a pointer to a struct that holds the defaults: flags win over
// the environment, that over the file, and that over what dst held. A list is
// replaced, never appended to. Lastly it calls the method Validate() error of
// dst and of every struct within that has one, inner ones first, and an outer
// one only when those in it passed.
//
// The error joins every problem that was found and is written for the user: what
// is wrong, where (file:line:column, variable or flag), and what to do. Problems
// in the file are of type *FileError. After an error dst is partly filled.
func Load(dst any, o Options) (*Loaded, error) {
	root, err := newTree(dst)
	if err != nil {
		return nil, err
	}
	l := &Loaded{root: root}
	env, err := parseEnv(o.Env)
	if err != nil {
		return nil, err
	}
	var problems []error
	data, err := l.readFile(o, env)
	if err != nil {
		return nil, err
	}
	if l.File != "" {
		problems = append(problems, decodeFile(root, l.File, data)...)
	}
	warnings, errs := applyEnv(root, env)
	l.Warnings = warnings
	problems = append(problems, errs...)
	problems = append(problems, applyFlags(root, o.Flags)...)
	if len(problems) == 0 {
		problems = validate(root)
	}
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	return l, nil
}

// CheckFiles looks for the files that settings name, and says which the program could
// not read: problems of those without which it does not work, and warnings of those that
// it may have no more need of.
func (l *Loaded) CheckFiles() (warnings []string, problem error) {
	var problems []error
	for s := range l.root.leaves {
		if s.file == "" || s.value.String() == "" {
			continue
		}
		err := readable(s.value.String())
		switch {
		case err == nil:
		case s.file == "first":
			warnings = append(warnings, fmt.Sprintf("%s: %v (%v); it is needed when the program starts first", s.path, err, s.origin))
		default:
			problems = append(problems, fmt.Errorf("%s: %w (%v); name a file that this user may read", s.path, err, s.origin))
		}
	}
	return warnings, errors.Join(problems...)
}

func readable(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // only looked at
	info, err := f.Stat()
	if err == nil && info.IsDir() {
		err = &fs.PathError{Op: "read", Path: name, Err: errors.New("it is a directory")}
	}
	return err
}

// readFile finds the file, sets l.File if there is one, and returns its bytes.
func (l *Loaded) readFile(o Options, env map[string]string) ([]byte, error) {
	name, why := o.source(env)
	optional := why == isDefault
	if name == "" {
		return nil, nil
	}
	data, err := readBounded(name)
	switch {
	case err == nil:
		l.File = name
		return data, nil
	case optional && errors.Is(err, os.ErrNotExist):
		return nil, nil
	}
	do := "name a readable YAML file"
	switch {
	case errors.Is(err, os.ErrNotExist):
		err, do = os.ErrNotExist, "create it (`config defaults` prints a complete one) or name another"
	case errors.Is(err, os.ErrPermission):
		err = fmt.Errorf("user id %d may not read it: %w", os.Getuid(), os.ErrPermission)
		do = "change its owner or mode, or run as another user"
	}
	return nil, fmt.Errorf("configuration file %s (%s): %w; %s", name, why, err, do)
}

// isDefault is why a file is read that nobody named.
const isDefault = "the default"

// source is the name of the file to be read, "" for none, and why it is that.
func (o Options) source(env map[string]string) (name, why string) {
	if o.File != "" {
		return o.File, "named by flag"
	}
	if name := env[envFile]; name != "" {
		return name, "named by the variable " + envFile
	}
	return o.DefaultFile, isDefault
}

func readBounded(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return nil, errors.New("it is a directory")
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("it is larger than %v", Bytes(maxFile))
	}
	return data, nil
}

// validator is a struct that checks itself.
type validator interface{ Validate() error }

// validate calls Validate below and then of s, and says where each struct was
// set.
func validate(s *setting) []error {
	var problems []error
	for _, c := range s.children {
		problems = append(problems, validate(c)...)
	}
	if len(problems) > 0 || s.value.Kind() != reflect.Struct {
		return problems
	}
	v, ok := s.value.Addr().Interface().(validator)
	if !ok {
		return nil
	}
	err := v.Validate()
	if err == nil {
		return nil
	}
	path := s.path
	if path == "" {
		path = "configuration"
	}
	return []error{fmt.Errorf("%s: %w%s", path, err, blame(s, err.Error()))}
}
