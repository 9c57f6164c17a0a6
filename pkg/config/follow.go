package config

import (
	"context"
	"os"
	"os/signal"
	"reflect"
	"syscall"
	"time"

	"go.uber.org/zap"
)

// lookEvery is how often Follow looks at the configuration file. What it reads has
// stayed as it is for so long: a file that is being written is not half read.
const lookEvery = 2 * time.Second

// Follow has a program that runs follow its configuration, until ctx ends: at SIGHUP
// and when the file has changed (also one that Kubernetes mounts from a ConfigMap) it
// loads the configuration again, as defaults and o say. Where settings with the tag
// live:"true" have changed since held, which is in force, it calls apply, which may use
// these alone. The log names them, and those that wait for the next start. What cannot
// be loaded changes nothing and is logged.
func Follow[T any](ctx context.Context, log *zap.Logger, held T, defaults func() T, o Options, apply func(T)) error {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	f := &follower[T]{log: log, held: held, defaults: defaults, options: o, apply: apply}
	return f.run(ctx, hangup)
}

type follower[T any] struct {
	log      *zap.Logger
	held     T
	defaults func() T
	options  Options
	apply    func(T)
}

func (f *follower[T]) run(ctx context.Context, hangup <-chan os.Signal) error {
	name := ""
	if env, err := parseEnv(f.options.Env); err == nil {
		name, _ = f.options.source(env)
	}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	var read, seen stamp // none: the file may have changed before this began
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-hangup:
			f.log.Info("SIGHUP: the configuration is loaded again")
			f.load()
		case <-tick.C:
			now := stampOf(name)
			if now == seen && now != read {
				read = now
				f.load()
			}
			seen = now
		}
	}
}

// stamp tells two versions of a file apart. That of a file that is not there is zero.
type stamp struct{ changed, size int64 }

func stampOf(name string) stamp {
	if name == "" {
		return stamp{}
	}
	info, err := os.Stat(name)
	if err != nil {
		return stamp{}
	}
	return stamp{info.ModTime().UnixNano(), info.Size()}
}

// load loads the configuration and applies what has changed.
func (f *follower[T]) load() {
	fresh := f.defaults()
	loaded, err := Load(&fresh, f.options)
	if err != nil {
		f.log.Error("the configuration cannot be loaded again; what was in force stays so", zap.Error(err))
		return
	}
	old, err := newTree(&f.held)
	if err != nil {
		f.log.Error("the configuration cannot be compared", zap.Error(err))
		return
	}
	live := false
	var later []string
	for _, s := range changes(old, loaded.root) {
		if !s.live {
			later = append(later, s.path)
			continue
		}
		live = true
		f.log.Info("a setting has changed", zap.String("setting", s.path), zap.String("value", s.text()), zap.Stringer("origin", s.origin))
	}
	f.held = fresh
	if live {
		f.apply(fresh)
	}
	if len(later) > 0 {
		f.log.Warn("settings have changed that take effect at the next start; restart to have them now", zap.Strings("settings", later))
	}
}

// changes lists the settings of b whose values differ from those of a, a tree of the
// same type. A list of structs is one.
func changes(a, b *setting) []*setting {
	var out []*setting
	for i, s := range b.children {
		switch {
		case s.kind == section:
			out = append(out, changes(a.children[i], s)...)
		case !reflect.DeepEqual(a.children[i].value.Interface(), s.value.Interface()):
			out = append(out, s)
		}
	}
	return out
}
