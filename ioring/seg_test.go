//go:build giouring

package ioring
import ("testing";"golang.org/x/sys/unix";"time";"fmt";"slices";"os";"strconv")
func TestSeg(t *testing.T){
 if s:=os.Getenv("SLACK"); s!="" {
   ents,_:=os.ReadDir("/proc/self/task")
   for _,x:=range ents { err:=os.WriteFile("/proc/"+x.Name()+"/timerslack_ns",[]byte(s),0); if err!=nil {fmt.Println(err)} }
   n,_:=strconv.Atoi(s)
   unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(n),0,0,0)
 }
 fd:=newFile(t, 4<<20, unix.O_RDWR)
 e:=newUring(t, fd, Options{})
 var a,b []time.Duration
 var t1 time.Time
 ch:=make(chan error,1)
 op:=&Op{Kind:OpRead,Bufs:[][]byte{make([]byte,4096)}}
 op.Done=func(_ *Op,err error){t1=time.Now();ch<-err}
 for range 20000 {
  t0:=time.Now()
  op.SubmitTo(e)
  <-ch
  t2:=time.Now()
  a=append(a,t1.Sub(t0)); b=append(b,t2.Sub(t1))
 }
 slices.Sort(a);slices.Sort(b)
 var sum time.Duration; for i := range a { sum += a[i]+b[i] }; fmt.Println("mean", sum/time.Duration(len(a)), "submit->done p50",a[len(a)/2],"p90",a[len(a)*9/10]," done->goroutine p50",b[len(b)/2],"p90",b[len(b)*9/10])
 e.Close()
}
