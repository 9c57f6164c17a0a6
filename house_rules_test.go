package damselfly_test

import (
	"fmt"
	"go/ast"
	"maps"
	"path"
	"slices"
	"strings"
)

func binaries() []string { return []string{"scheduler", "seed", "dfget"} }

// purePackages maps each pure package to what it may import of ours.
func purePackages() map[string][]string {
	return map[string][]string{
		"pkg/blob":       {},
		"pkg/ring":       {"pkg/blob"},
		"scheduler/core": {"pkg/blob", "pkg/ring"},
		"scheduler/sim":  {"pkg/blob", "pkg/ring", "scheduler/core"},
	}
}

// engine is a large dependency and the packages that may import it: those named
// and, where a name ends in /..., what is below it.
type engine struct {
	prefix    string
	importers []string
}

func engines() []engine {
	return []engine{
		{"github.com/hashicorp/memberlist", []string{"scheduler/cluster"}},
		{"google.golang.org/grpc", []string{"pkg/peer/...", "pkg/control/...", "pkg/identity/...", "pkg/node",
			"scheduler", "scheduler/server/...", "seed", "dfget", "proto/...", "e2e/..."}},
		{"github.com/libp2p", []string{"pkg/identity"}},
		{"github.com/anacrolix/torrent", nil},
	}
}

func rules() []rule {
	return []rule{
		{"binaries", "scheduler, seed and dfget never import each other",
			"what two of them need is shared on purpose, in pkg; otherwise one binary drags in another's parts", binariesApart},
		{"layers", "pkg and proto never import scheduler, seed, dfget or e2e; nothing but e2e imports e2e; only binaries and e2e import pkg/node",
			"imports go one way: from the binaries down to pkg/blob, with pkg/node as the only wiring", layers},
		{"pure imports", "the pure packages import of ours only packages that are pure, and nothing that does I/O, tells the time or synchronizes",
			"the same events must give the same decisions, in the scheduler, in the simulator and in a replay", pureImports},
		{"pure calls", "the pure packages start no goroutine, read no clock, print nothing and use no shared randomness",
			"time and randomness come in as arguments, so that a run can be repeated byte for byte", pureCalls},
		{"engines", "each engine has its importers, and no others",
			"an engine that leaks through the house can never be replaced, and makes every binary large", enginesKept},
		{"strangers", "proxy and store do not know that peers exist",
			"everything that fetches writes the store and everything that serves reads it; a shortcut between them is a second code path", strangers},
		{"interfaces", "an interface has at most four methods",
			"interfaces stand in the consumer and say what it needs; a large one is a copy of somebody's type", interfacesSmall},
		{"package names", "no package is called util, common, types, helpers or manager",
			"a package is one noun of the design; such names collect what has no place", packageNames},
		{"shared", "a package in pkg is used by two binaries or more",
			"what only one binary uses lives under that binary", shared},
		{"init", "there is no init function", "what runs before main can be neither configured, tested nor stopped", noInit},
		{"file length", "a file that is not generated has at most 450 lines", "a file is one idea that can be read at a sitting", fileLength},
		{"package doc", "every package says in its comment what it is", "a reader starts there", packageDoc},
		{"tests wait for events", "tests, and what they use in e2e, never sleep, unless in synctest.Test; e2e/demo may",
			"a sleep is too short on a busy machine and wasted on an idle one; wait for the event, or use testing/synctest", noSleep},
		{"tests run", "no test is skipped", "a test that is skipped where nobody looks proves nothing; say what is missing and fail", noSkip},
	}
}

func binariesApart(tree []source) []breach {
	return eachImport(tree, func(s source, name string, ours bool) string {
		for _, own := range binaries() {
			for _, other := range binaries() {
				if ours && own != other && within(s.pkg, own) && within(name, other) {
					return own + " imports " + name
				}
			}
		}
		return ""
	})
}

func layers(tree []source) []breach {
	above := append(binaries(), "e2e")
	return eachImport(tree, func(s source, name string, ours bool) string {
		switch {
		case !ours:
		case (within(s.pkg, "pkg") || within(s.pkg, "proto")) && withinAny(name, above),
			within(s.pkg, "proto") && !within(name, "proto"),
			within(name, "e2e") && !within(s.pkg, "e2e"),
			within(name, "pkg/node") && !within(s.pkg, "pkg/node") && !withinAny(s.pkg, above):
			return s.pkg + " imports " + name
		}
		return ""
	})
}

func pureImports(tree []source) []breach {
	impure := []string{"os", "net", "syscall", "log", "context", "sync", "runtime", "embed", "plugin", "crypto/rand", "io/fs", "io/ioutil"}
	return eachImport(tree, func(s source, name string, ours bool) string {
		allowed, pure := purePackages()[s.pkg]
		switch {
		case !pure || s.test:
		case ours && !slices.Contains(allowed, name):
			return s.pkg + " imports " + name
		case !ours && strings.Contains(strings.Split(name, "/")[0], "."):
			return s.pkg + " imports " + name + ", which is not of the standard library"
		case !ours && withinAny(name, impure):
			return s.pkg + " imports " + name
		}
		return ""
	})
}

// pureCalls judges functions by name: package time may be imported for its
// Duration, and math/rand for generators that are seeded by the caller.
func pureCalls(tree []source) []breach {
	clock := []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker"}
	seeded := []string{"New", "NewPCG", "NewChaCha8", "NewSource", "NewZipf", "Rand", "Source", "PCG", "ChaCha8", "Zipf"}
	pure := func(s source) bool { _, ok := purePackages()[s.pkg]; return ok && !s.test }
	return eachNode(tree, pure, func(s source, n ast.Node) string {
		if _, ok := n.(*ast.GoStmt); ok {
			return "a goroutine is started"
		}
		if name := s.selected(n, "time"); slices.Contains(clock, name) {
			return "time." + name + " is used"
		}
		if name := s.selected(n, "fmt"); strings.HasPrefix(name, "Print") || strings.HasPrefix(name, "Scan") {
			return "fmt." + name + " is used"
		}
		for _, p := range []string{"math/rand", "math/rand/v2"} {
			if name := s.selected(n, p); name != "" && !slices.Contains(seeded, name) {
				return p + "'s " + name + " is used"
			}
		}
		return ""
	})
}

func enginesKept(tree []source) []breach {
	return eachImport(tree, func(s source, name string, ours bool) string {
		for _, e := range engines() {
			if ours || !within(name, e.prefix) {
				continue
			}
			for _, importer := range e.importers {
				folder, below := strings.CutSuffix(importer, "/...")
				if s.pkg == folder || below && within(s.pkg, folder) {
					return ""
				}
			}
			return s.pkg + " imports " + name + ", which is for " + strings.Join(append(e.importers, "a bridge package named in this test"), ", ")
		}
		return ""
	})
}

func strangers(tree []source) []breach {
	return eachImport(tree, func(s source, name string, ours bool) string {
		if ours && !s.test && withinAny(s.pkg, []string{"pkg/proxy", "pkg/store"}) &&
			withinAny(name, []string{"pkg/peer", "pkg/control", "pkg/node", "proto"}) {
			return s.pkg + " imports " + name
		}
		return ""
	})
}

func interfacesSmall(tree []source) []breach {
	const most = 4
	named := map[string]*ast.InterfaceType{}
	for _, s := range tree {
		ast.Inspect(s.file, func(n ast.Node) bool {
			if spec, ok := n.(*ast.TypeSpec); ok {
				if i, ok := spec.Type.(*ast.InterfaceType); ok {
					named[s.pkg+"."+spec.Name.Name] = i
				}
			}
			return true
		})
	}
	production := func(s source) bool { return !s.test && !s.generated }
	return eachNode(tree, production, func(s source, n ast.Node) string {
		i, ok := n.(*ast.InterfaceType)
		if !ok {
			return ""
		}
		if count := countMethods(i, s.pkg, named); count > most {
			return fmt.Sprintf("an interface has %d methods", count)
		}
		return ""
	})
}

// countMethods counts those of embedded interfaces too. One of another package
// counts by its name, and as one method if the name is not known here.
func countMethods(i *ast.InterfaceType, pkg string, named map[string]*ast.InterfaceType) int {
	foreign := map[string]int{
		"ReadWriter": 2, "ReadCloser": 2, "WriteCloser": 2, "ReadSeeker": 2, "WriteSeeker": 2,
		"ReadWriteCloser": 3, "ReadWriteSeeker": 3, "ReadSeekCloser": 3, "Listener": 3, "Context": 4, "Conn": 8,
	}
	count := 0
	for _, field := range i.Methods.List {
		switch t := field.Type.(type) {
		case *ast.FuncType:
			count += len(field.Names)
		case *ast.Ident:
			if inner := named[pkg+"."+t.Name]; inner != nil {
				count += countMethods(inner, pkg, named)
			} else if t.Name == "error" {
				count++
			}
		case *ast.SelectorExpr:
			count += max(foreign[t.Sel.Name], 1)
		}
	}
	return count
}

func packageNames(tree []source) []breach {
	banned := []string{"util", "utils", "common", "types", "helper", "helpers", "manager", "managers", "misc", "shared", "base"}
	var out []breach
	for _, s := range tree {
		name := strings.TrimSuffix(s.file.Name.Name, "_test")
		for _, word := range append(strings.Split(s.pkg, "/"), name) {
			if slices.Contains(banned, word) {
				out = append(out, breach{s.at(s.file.Name), "package " + s.pkg + " is called " + word})
				break
			}
		}
	}
	return out
}

// shared holds once all binaries have a main; until then the house is unfinished.
// pkg/ring stands in pkg by design: nodes find the owner of a blob by it as soon as
// there are several schedulers.
func shared(tree []source) []breach {
	imports := map[string][]string{}
	where := map[string]string{}
	for _, s := range tree {
		if s.test {
			continue
		}
		where[s.pkg] = s.at(s.file.Name)
		for _, spec := range s.file.Imports {
			if name, ours := imported(spec); ours {
				imports[s.pkg] = append(imports[s.pkg], name)
			}
		}
	}
	users := map[string][]string{}
	for _, binary := range binaries() {
		if where[binary] == "" {
			return nil
		}
		seen := map[string]bool{}
		var follow func(string)
		follow = func(pkg string) {
			for _, next := range imports[pkg] {
				if !seen[next] {
					seen[next] = true
					users[next] = append(users[next], binary)
					follow(next)
				}
			}
		}
		follow(binary)
	}
	var out []breach
	for _, pkg := range slices.Sorted(maps.Keys(users)) {
		if within(pkg, "pkg") && pkg != "pkg/ring" && len(users[pkg]) == 1 {
			out = append(out, breach{where[pkg], pkg + " is used by " + users[pkg][0] + " alone"})
		}
	}
	return out
}

func noInit(tree []source) []breach {
	written := func(s source) bool { return !s.generated }
	return eachNode(tree, written, func(_ source, n ast.Node) string {
		if f, ok := n.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
			return "a function is called init"
		}
		return ""
	})
}

func fileLength(tree []source) []breach {
	const most = 450
	var out []breach
	for _, s := range tree {
		if s.lines > most && !s.generated {
			out = append(out, breach{s.name + ":1", fmt.Sprintf("the file has %d lines", s.lines)})
		}
	}
	return out
}

func packageDoc(tree []source) []breach {
	documented, first := map[string]bool{}, map[string]source{}
	for _, s := range tree {
		if s.test || s.generated {
			continue
		}
		if _, ok := first[s.pkg]; !ok {
			first[s.pkg] = s
		}
		documented[s.pkg] = documented[s.pkg] || s.file.Doc != nil
	}
	var out []breach
	for _, pkg := range slices.Sorted(maps.Keys(first)) {
		if !documented[pkg] {
			s := first[pkg]
			out = append(out, breach{s.at(s.file.Name), "package " + path.Base(pkg) + " has no comment"})
		}
	}
	return out
}

func noSkip(tree []source) []breach {
	all := func(source) bool { return true }
	return eachNode(tree, all, func(s source, n ast.Node) string {
		selector, ok := n.(*ast.SelectorExpr)
		if !ok || !slices.Contains([]string{"Skip", "Skipf", "SkipNow"}, selector.Sel.Name) {
			return ""
		}
		x, ok := selector.X.(*ast.Ident)
		if !ok || x.Obj == nil {
			return ""
		}
		field, ok := x.Obj.Decl.(*ast.Field)
		if !ok {
			return ""
		}
		kind := field.Type
		if star, ok := kind.(*ast.StarExpr); ok {
			kind = star.X
		}
		if name := s.selected(kind, "testing"); slices.Contains([]string{"T", "B", "F", "TB"}, name) {
			return x.Name + "." + selector.Sel.Name + " is used"
		}
		return ""
	})
}
