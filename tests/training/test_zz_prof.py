import collections, time, jax, resource, os
ev=collections.Counter(); n=collections.Counter()
def cb(e, s, **k):
    ev[e]+=s; n[e]+=1
jax.monitoring.register_event_duration_secs_listener(cb)
def cpu():
    r=resource.getrusage(resource.RUSAGE_SELF); return r.ru_utime+r.ru_stime
def test_p(tiny_config, tmp_path):
    from distil_jax.training.stages import distill
    if os.environ.get("CACHE"):
        jax.config.update("jax_compilation_cache_dir", str(tmp_path/"cache"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    for i in range(2):
        ev.clear(); n.clear()
        a=cpu(); t=time.time()
        distill(tiny_config(tmp_path/f"r{i}", {"parallel.devices": int(os.environ.get("DEV","1")), "training.steps":6, "checkpoint.every_steps":2, "evaluation.every_steps":3}))
        print("RUN", i, "cpu", round(cpu()-a,2), "wall", round(time.time()-t,2))
        for k,v in sorted(ev.items(), key=lambda x:-x[1])[:12]: print("   ", k, n[k], round(v,2))
