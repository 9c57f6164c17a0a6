package odd

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"time"
)

// Random is the behaviours of seeds first to first+n-1, by registry. Each is pulled by
// one client.
func Random(first, n int) [][]Behaviour {
	const registries = 16
	out := make([][]Behaviour, registries)
	for seed := first; seed < first+n; seed++ {
		i := seed % registries
		out[i] = append(out[i], random(seed))
	}
	return out
}

// dice makes the choices of one seed.
type dice struct{ *rand.Rand }

// of tells whether something of this probability happens.
func (d dice) of(p float64) bool { return d.Float64() < p }

func pick[T any](d dice, list ...T) T { return list[d.IntN(len(list))] }

// random is one seed's behaviour. HTTP/1.1 belongs to a registry.
func random(seed int) Behaviour {
	d := dice{rand.New(rand.NewPCG(uint64(seed), 1))}
	b := Behaviour{Name: fmt.Sprint("random-", seed), HTTP1: seed%4 == 0, Shape: d.shape(), Auth: d.auth()}
	b.Clients = []string{pick(d, "containerd", "chunked", "podman", "docker", "gets", "probe")}
	if d.of(0.08) {
		b.Demand = Demand{"X-Meta-Token", "open", pick(d, 401, 403, 404)}
	}
	if d.of(0.08) {
		b.Before = []Visit{{Repository: "loud", Layer: d.of(0.5)}}
		b.Rules = append(b.Rules, Rule{On: All, Repository: "loud", Status: pick(d, 429, 503), RetryAfter: pick(d, "", "4")})
	}
	for _, on := range []Kind{pick(d, HeadTag, HeadManifest, Heads), HeadDigest, HeadBlob} {
		if d.of(0.5) {
			b.Rules = append(b.Rules, d.head(on))
		}
	}
	for _, on := range []Kind{pick(d, GetTag, GetManifest, Gets), GetDigest, GetBlob} {
		if d.of(0.4) {
			b.Rules = append(b.Rules, d.get(on)...)
		}
	}
	return b
}

func (d dice) head(on Kind) Rule {
	r := d.both(on)
	switch d.IntN(8) {
	case 0, 1, 2:
		r.Status = pick(d, 400, 401, 403, 404, 405, 406, 410, 412, 416, 429, 500, 501, 502, 503, 504)
		r.Redirect = nil
	case 3:
		r.Drop = true
	}
	if d.of(0.4) {
		r.Length = Length(d.IntN(int(LengthNone) + 1))
	}
	return r
}

func (d dice) get(on Kind) []Rule {
	r := d.both(on)
	r.Framing = pick(d, FramingLength, FramingLength, FramingChunked, FramingClose)
	r.Trailer, r.Close, r.Gzip = d.of(0.05), d.of(0.05), d.of(0.1)
	if d.of(0.3) {
		r.Range = Range(d.IntN(int(RangeUntold) + 1))
	}
	if d.of(0.2) {
		r.FirstByte = d.time()
	}
	if !d.of(0.15) {
		return []Rule{r}
	}
	bad := Rule{On: on, First: d.IntN(2), Wait: r.Wait}
	switch d.IntN(5) {
	case 0:
		bad.Status = pick(d, 404, 429, 500, 502, 503)
	case 1:
		bad.Drop = true
	case 2:
		bad.CutAtOnce = true
	default:
		bad.Cut = true
	}
	return []Rule{bad, r}
}

// both is what heads and gets have alike.
func (d dice) both(on Kind) Rule {
	r := Rule{On: on, Early: d.of(0.05), ETag: pick(d, "", "", "", `W/"1"`, `"5f3c"`), Type: pick(d, "", "", "", "-", "text/plain")}
	if d.of(0.3) {
		r.Wait, r.Lazy = d.time(), d.of(0.3)
	}
	if d.of(0.3) {
		r.Digest = Digest(d.IntN(int(DigestChild) + 1))
	}
	if d.of(0.25) {
		r.Redirect = &Redirect{
			Status: pick(d, 0, 301, 302, 303, 308), Same: d.of(0.2), Relative: d.of(0.1), Hops: d.IntN(3), Only: pick(d, "", "", "GET"), Once: d.of(0.2),
		}
	}
	return r
}

// time is short, and now and then more than a node may add.
func (d dice) time() time.Duration {
	if d.of(0.15) {
		return time.Duration(600+d.IntN(600)) * time.Millisecond
	}
	return time.Duration(20+d.IntN(250)) * time.Millisecond
}

func (d dice) shape() Shape {
	if d.of(0.5) {
		return Shape{}
	}
	sizes := []func(int64) int64{
		nil, nil, func(n int64) int64 { return n + 1 }, func(n int64) int64 { return n - 1 }, func(n int64) int64 { return n / 2 },
		func(n int64) int64 { return 2 * n }, func(int64) int64 { return 0 }, func(int64) int64 { return -1 },
	}
	return Shape{
		LayerSize: pick(d, sizes...), ConfigSize: pick(d, sizes...), EmptyLayer: d.of(0.15), TinyConfig: d.of(0.1), Schema1: d.of(0.1),
		Docker: d.of(0.3), Single: d.of(0.2), ChildType: pick(d, "", "", "", "application/vnd.docker.distribution.manifest.v2+json"),
	}
}

func (d dice) auth() Auth {
	if d.of(0.7) {
		return Auth{}
	}
	return Auth{
		Scheme: pick(d, "basic", "bearer", "bearer"), RealmElsewhere: d.of(0.5), Query: pick(d, "", "?account=main"),
		Scope: pick(d, "", "", "-", "repository:%s:pull,push"), Public: d.of(0.3), Forbidden: d.of(0.2), OnlyTags: d.of(0.1),
	}
}

// String is the fields of a behaviour that are not zero.
func (b Behaviour) String() string { return nonzero(reflect.ValueOf(b)) }

func nonzero(v reflect.Value) string {
	switch v.Kind() {
	case reflect.Pointer:
		return nonzero(v.Elem())
	case reflect.Func:
		if f, ok := v.Interface().(func(int64) int64); ok {
			return fmt.Sprintf("(1000→%d)", f(1000))
		}
		return "func"
	case reflect.Slice:
		var parts []string
		for i := range v.Len() {
			parts = append(parts, nonzero(v.Index(i)))
		}
		return "[" + strings.Join(parts, " ") + "]"
	case reflect.Struct:
		var parts []string
		for i := range v.NumField() {
			if !v.Field(i).IsZero() {
				parts = append(parts, v.Type().Field(i).Name+":"+nonzero(v.Field(i)))
			}
		}
		return "{" + strings.Join(parts, " ") + "}"
	default:
		return fmt.Sprint(v.Interface())
	}
}

// String names the kinds.
func (k Kind) String() string {
	var parts []string
	for i, name := range []string{"HeadTag", "GetTag", "HeadDigest", "GetDigest", "HeadBlob", "GetBlob"} {
		if k&(1<<i) != 0 {
			parts = append(parts, name)
		}
	}
	return strings.Join(parts, "|")
}
