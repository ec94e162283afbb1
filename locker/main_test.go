package locker_test

import (
	"testing"

	"github.com/flockctx/flockctx/locker"
	"github.com/flockctx/flockctx/locker/lockertest"
)

func TestMain(m *testing.M) {
	lockertest.Main(m, func(dir string) (locker.Locker, error) { return locker.Dir(dir, nil), nil })
}

func TestConformance(t *testing.T) {
	dir := t.TempDir() + "/locks"
	lockertest.Run(t, func(testing.TB) locker.Locker { return locker.Dir(dir, nil) }, lockertest.Faults{Spec: dir})
}
