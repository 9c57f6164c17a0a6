package damselfly_test

import (
	"strings"
	"testing"
)

// TestHouseCatches breaks each rule on purpose, and stays within it narrowly.
func TestHouseCatches(t *testing.T) {
	checks := map[string]func([]source) []breach{}
	for _, r := range rules() {
		checks[r.name] = r.check
		if r.text == "" || r.reason == "" {
			t.Errorf("rule %q does not say what it wants and why", r.name)
		}
	}
	tried := map[string]bool{}
	for _, c := range breaches() {
		t.Run(c.rule+"/"+c.name, func(t *testing.T) {
			var tree []source
			for name, text := range c.files {
				tree = append(tree, parse(t, name, text))
			}
			found := checks[c.rule](tree)
			if c.want == "" {
				if len(found) > 0 {
					t.Errorf("good code is refused: %v", found)
				}
				return
			}
			tried[c.rule] = true
			if len(found) != 1 || !strings.Contains(found[0].where+": "+found[0].what, c.want) {
				t.Errorf("got %v, want one breach with %q", found, c.want)
			}
		})
	}
	for name := range checks {
		if !tried[name] {
			t.Errorf("no breach of rule %q was tried", name)
		}
	}
}

type breachCase struct {
	rule, name string
	files      map[string]string
	want       string // what the one breach says; "" for good code
}

// imports is a file that imports paths; ours start with a slash.
func imports(pkg string, paths ...string) string {
	var b strings.Builder
	b.WriteString("package " + pkg + "\n")
	for _, p := range paths {
		if strings.HasPrefix(p, "/") {
			p = module + p
		}
		b.WriteString("import _ \"" + p + "\"\n")
	}
	return b.String()
}

func one(name, text string) map[string]string { return map[string]string{name: text} }

func breaches() []breachCase {
	grpc := "google.golang.org/grpc"
	cases := []breachCase{
		{"binaries", "sibling", one("seed/main.go", imports("main", "/dfget/face")), "seed/main.go:2: seed imports dfget/face"},
		{"binaries", "below", one("dfget/face/x_test.go", imports("face", "/scheduler/core")), "dfget imports scheduler/core"},
		{"binaries", "own part", one("scheduler/main.go", imports("main", "/scheduler/core", "/pkg/config")), ""},
		{"binaries", "similar name", one("seed/main.go", imports("main", "/schedulers")), ""},

		{"layers", "up", one("pkg/task/t.go", imports("task", "/scheduler/core")), "pkg/task imports scheduler/core"},
		{"layers", "up in a test", one("pkg/task/t_test.go", imports("task_test", "/e2e/process")), "pkg/task imports e2e/process"},
		{"layers", "e2e", one("dfget/x.go", imports("main", "/e2e/process")), "dfget imports e2e/process"},
		{"layers", "proto", one("proto/damselfly/v1/x.go", imports("v1", "/pkg/blob")), "proto/damselfly/v1 imports pkg/blob"},
		{"layers", "second wiring", one("pkg/proxy/p.go", imports("proxy", "/pkg/node")), "pkg/proxy imports pkg/node"},
		{"layers", "down", map[string]string{"seed/main.go": imports("main", "/pkg/node"), "pkg/node/n.go": imports("node", "/pkg/store", "/proto/damselfly/v1"),
			"e2e/x_test.go": imports("e2e", "/pkg/node", "/scheduler/core", "/e2e/process")}, ""},

		{"pure imports", "ours", one("scheduler/core/c.go", imports("core", "/pkg/config")), "scheduler/core imports pkg/config"},
		{"pure imports", "files", one("pkg/blob/b.go", imports("blob", "os")), "pkg/blob imports os"},
		{"pure imports", "network", one("pkg/ring/r.go", imports("ring", "net/netip")), "pkg/ring imports net/netip"},
		{"pure imports", "locks", one("scheduler/core/c.go", imports("core", "sync/atomic")), "scheduler/core imports sync/atomic"},
		{"pure imports", "foreign", one("scheduler/core/c.go", imports("core", "go.uber.org/zap")), "not of the standard library"},
		{"pure imports", "good", map[string]string{"scheduler/core/c.go": imports("core", "/pkg/blob", "/pkg/ring", "time", "io", "math/rand/v2"),
			"scheduler/core/c_test.go": imports("core", "os", "pgregory.net/rapid")}, ""},

		{"pure calls", "goroutine", one("pkg/blob/b.go", "package blob\nfunc f() { go f() }"), "pkg/blob/b.go:2: a goroutine is started"},
		{"pure calls", "clock", one("scheduler/core/c.go", "package core\nimport \"time\"\nvar _ = time.Now()"), "c.go:3: time.Now is used"},
		{"pure calls", "renamed clock", one("scheduler/core/c.go", "package core\nimport c \"time\"\nvar f = c.After"), "time.After is used"},
		{"pure calls", "printing", one("pkg/ring/r.go", "package ring\nimport \"fmt\"\nfunc f() { fmt.Println() }"), "fmt.Println is used"},
		{"pure calls", "shared randomness", one("pkg/ring/r.go", "package ring\nimport \"math/rand/v2\"\nvar _ = rand.IntN(3)"), "math/rand/v2's IntN is used"},
		{"pure calls", "good", one("scheduler/core/c.go", "package core\nimport (\"time\"; \"math/rand/v2\"; \"fmt\")\n"+
			"func f(rand *rand.Rand, d time.Duration) (int, error) { return rand.IntN(3), fmt.Errorf(\"%v\", d) }\n"+
			"func g() *rand.Rand { return rand.New(rand.NewPCG(1, 2)) }"), ""},
		{"pure calls", "elsewhere", one("pkg/store/s.go", "package store\nimport \"time\"\nfunc f() { go f(); time.Now() }"), ""},

		{"engines", "memberlist", one("scheduler/server/s.go", imports("server", "github.com/hashicorp/memberlist")), "which is for scheduler/cluster"},
		{"engines", "grpc", one("pkg/task/t.go", imports("task", grpc+"/codes")), "pkg/task imports google.golang.org/grpc/codes"},
		{"engines", "grpc in the core", one("scheduler/core/c.go", imports("core", grpc)), "scheduler/core imports"},
		{"engines", "libp2p", one("pkg/node/n.go", imports("node", "github.com/libp2p/go-libp2p/core/peer")), "which is for pkg/identity"},
		{"engines", "torrent", one("seed/s.go", imports("main", "github.com/anacrolix/torrent")), "a bridge package named in this test"},
		{"engines", "good", map[string]string{"scheduler/cluster/c.go": imports("cluster", "github.com/hashicorp/memberlist"),
			"scheduler/main.go": imports("main", grpc), "scheduler/server/s.go": imports("server", grpc), "pkg/peer/p_test.go": imports("peer", grpc+"/mem"),
			"pkg/identity/i.go": imports("identity", "github.com/libp2p/go-libp2p/core/peer", grpc)}, ""},

		{"strangers", "proxy", one("pkg/proxy/p.go", imports("proxy", "/pkg/peer")), "pkg/proxy imports pkg/peer"},
		{"strangers", "store", one("pkg/store/s.go", imports("store", "/proto/damselfly/v1")), "pkg/store imports proto"},
		{"strangers", "good", one("pkg/proxy/p.go", imports("proxy", "/pkg/task", "/pkg/origin", "/pkg/blob")), ""},

		{"package names", "folder", one("pkg/util/x/y.go", "package x"), "package pkg/util/x is called util"},
		{"package names", "clause", one("pkg/x/x.go", "package helpers"), "is called helpers"},
		{"package names", "good", one("pkg/utility/x.go", "package utility"), ""},

		{"init", "function", one("a.go", "package a\nfunc init() {}"), "a.go:2: a function is called init"},
		{"init", "method and generated", map[string]string{"a.go": "package a\ntype t int\nfunc (t) init() {}",
			"b.pb.go": "// Code generated by x. DO NOT EDIT.\n\npackage a\nfunc init() {}"}, ""},

		{"file length", "long", one("a.go", "package a\n"+strings.Repeat("\n", 450)), "the file has 451 lines"},
		{"file length", "just right", map[string]string{"a.go": "package a\n" + strings.Repeat("\n", 449),
			"b.go": "// Code generated by x. DO NOT EDIT.\n\npackage a\n" + strings.Repeat("\n", 900)}, ""},

		{"package doc", "none", map[string]string{"pkg/x/a.go": "package x", "pkg/x/a_test.go": "// Package x is.\npackage x"}, "package x has no comment"},
		{"package doc", "in one file", map[string]string{"x/a.go": "package x", "x/b.go": "// Package x is.\npackage x", "y/a_test.go": "package y"}, ""},
	}
	return append(cases, testBreaches()...)
}

func testBreaches() []breachCase {
	five := "A(); B(); C(); D(); E()"
	return []breachCase{
		{"interfaces", "five methods", one("pkg/x/a.go", "package x\ntype I interface { "+five+" }"), "an interface has 5 methods"},
		{"interfaces", "by embedding", map[string]string{"pkg/x/a.go": "package x\ntype A interface { a(); b(); c() }",
			"pkg/x/b.go": "package x\nimport \"io\"\nfunc f(interface { A; io.ReadCloser }) {}"}, "an interface has 5 methods"},
		{"interfaces", "good", map[string]string{"pkg/x/a.go": "package x\ntype I interface { A(); B(); error; Fifth }\ntype Fifth interface { ~int | ~string }",
			"pkg/x/a_test.go": "package x\ntype J interface { " + five + " }", "x.pb.go": "// Code generated by x. DO NOT EDIT.\n\npackage x\ntype K interface { " + five + " }"}, ""},

		{"shared", "by one", map[string]string{"scheduler/main.go": imports("main", "/pkg/a", "/scheduler/core"), "seed/main.go": imports("main", "/pkg/a"),
			"dfget/main.go": imports("main", "/pkg/a"), "pkg/a/a.go": "package a", "pkg/b/b.go": "package b", "scheduler/core/c.go": imports("core", "/pkg/b")},
			"pkg/b is used by scheduler alone"},
		{"shared", "by two, or unfinished", map[string]string{"scheduler/main.go": imports("main", "/pkg/a"), "seed/main.go": imports("main", "/pkg/b"),
			"dfget/main.go": imports("main", "/pkg/a"), "pkg/a/a.go": imports("a", "/pkg/b"), "pkg/b/b.go": "package b"}, ""},
		{"shared", "no binaries yet", map[string]string{"scheduler/main.go": imports("main", "/pkg/a"), "pkg/a/a.go": "package a"}, ""},

		{"tests wait for events", "sleep", one("pkg/x/a_test.go", "package x\nimport \"time\"\nfunc f() { time.Sleep(1) }"), "a_test.go:3: time.Sleep is used"},
		{"tests wait for events", "beside a bubble", one("pkg/x/a_test.go", "package x\nimport (\"time\"; \"testing/synctest\")\n"+
			"func f() { synctest.Test(nil, func() { time.Sleep(1) })\ntime.Sleep(2) }"), "a_test.go:4: time.Sleep is used"},
		{"tests wait for events", "near a helper of a bubble", map[string]string{"pkg/x/a_test.go": "package x\nimport \"testing/synctest\"\n" +
			"func bubble(f func()) { synctest.Test(nil, f) }\nfunc TestA() { bubble(func() { use() }) }",
			"pkg/x/b_test.go": "package x\nimport \"time\"\nfunc use() { time.Sleep(1) }\nfunc TestB() { time.Sleep(1) }"}, "b_test.go:4: time.Sleep is used"},
		{"tests wait for events", "helper of another package's bubble", map[string]string{"pkg/x/a_test.go": "package x\nimport \"testing/synctest\"\n" +
			"func TestA() { synctest.Test(nil, func() { use() }) }", "pkg/y/b_test.go": "package y\nimport \"time\"\nfunc use() { time.Sleep(1) }"}, "b_test.go:3: time.Sleep is used"},
		{"tests wait for events", "e2e", one("e2e/process/p.go", "package process\nimport \"time\"\nfunc f() { time.Sleep(1) }"), "p.go:3: time.Sleep is used"},
		{"tests wait for events", "good", map[string]string{"pkg/x/a.go": "package x\nimport \"time\"\nfunc f() { time.Sleep(1) }",
			"pkg/x/a_test.go":  "package x\nimport (\"time\"; \"testing/synctest\")\nfunc f() { synctest.Test(nil, func() { time.Sleep(1) }) }",
			"e2e/demo/main.go": "package main\nimport \"time\"\nfunc f() { time.Sleep(1) }"}, ""},

		{"tests run", "skip", one("a_test.go", "package x\nimport \"testing\"\nfunc TestX(t *testing.T) { t.Skip() }"), "a_test.go:3: t.Skip is used"},
		{"tests run", "in a helper", one("a.go", "package x\nimport \"testing\"\nfunc need(b testing.TB) { b.Skipf(\"no root\") }"), "b.Skipf is used"},
		{"tests run", "other skips", one("a_test.go", "package x\nimport \"pgregory.net/rapid\"\nfunc f(t *rapid.T, d interface{ Skip() }) { t.Skip(); d.Skip() }"), ""},
	}
}
